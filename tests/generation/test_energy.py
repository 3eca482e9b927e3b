import math
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from generation.energy import (
    IDLE,
    LOAD,
    LOST,
    Used,
    Window,
    apportion,
    break_even_rows,
    counter_gain,
    divide,
    joined,
    token_work,
)
from generation.energy_config import EnergyConfig

AMOUNT = st.integers(0, 10**15)
COUNTS = st.fixed_dictionaries(
    {
        "requests": st.integers(0, 1000),
        "prompt_tokens": st.integers(0, 10**7),
        "cached_tokens": st.integers(0, 10**7),
        "output_tokens": st.integers(0, 10**7),
    }
)
WINDOWS = st.builds(
    Window,
    stage=st.sampled_from(["principles", "generate-psi", "generate-large", "evaluate-psi"]),
    process=st.sampled_from(["a", "b"]),
    role=st.sampled_from(["replica", "driver"]),
    pool=st.sampled_from(["large", "small"]),
    used=st.builds(Used, AMOUNT, AMOUNT, AMOUNT, AMOUNT),
    idle_mj=AMOUNT,
    tokens=st.dictionaries(st.sampled_from(["mine", "probe", "draft", "answer", "evaluate"]), COUNTS),
    unfinished=st.integers(0, 3),
    loading=st.booleans(),
)


def total(parts: Iterable[Used]) -> Used:
    return sum(parts, Used())


@given(st.integers(0, 10**18), st.dictionaries(st.text(max_size=3), st.floats(0, 1e12), min_size=1))
def test_parts_in_whole_numbers_add_up_to_the_whole_exactly(amount: int, weights: dict[str, float]):
    if sum(weights.values()) > 0:
        parts = apportion(amount, weights)
        assert sum(parts.values()) == amount
        assert min(parts.values()) >= 0


@given(WINDOWS, st.floats(0, 2))
def test_the_stages_of_a_window_add_up_to_what_the_device_used_exactly(window: Window, prefill_weight: float):
    assert total(divide(window, prefill_weight).values()) == window.used


@given(st.lists(WINDOWS, max_size=12), st.floats(0, 2))
def test_the_stages_of_a_run_add_up_to_what_all_devices_used_exactly(windows: list[Window], prefill_weight: float):
    parts = [used for window in joined(windows) for used in divide(window, prefill_weight).values()]
    assert total(parts) == total(window.used for window in windows)


def window(
    tokens: Mapping[str, Mapping[str, int]] | None = None,
    *,
    unfinished: int = 0,
    loading: bool = False,
    stage: str = "generate-psi",
    idle_mj: int = 0,
) -> Window:
    return Window(
        stage, "p", "replica", "small", Used(10_000, 8_000, 5_000, 0), idle_mj, tokens or {}, unfinished, loading
    )


def counts(prompt: int, cached: int, output: int) -> dict[str, int]:
    return {"requests": 1, "prompt_tokens": prompt, "cached_tokens": cached, "output_tokens": output}


def test_energy_goes_by_token_work_and_idle_power_by_steps():
    tokens = {"draft": counts(500, 100, 100), "answer": counts(100, 100, 100)}
    assert token_work(tokens["draft"], 0.5) == 300
    parts = divide(window(tokens, idle_mj=1_000), 0.5)
    assert parts["draft"] == Used(7_500, 6_000, 500 + 3_000, 0)
    assert parts["answer"] == Used(2_500, 2_000, 500 + 1_000, 0)


@pytest.mark.parametrize(
    ("one", "part"),
    [
        (window(loading=True), LOAD),
        (window({"draft": counts(9, 0, 9)}, loading=True), LOAD),
        (window(), IDLE),
        (window(unfinished=3), LOST),
    ],
    ids=["loading", "loading with a first request", "waiting", "aborted"],
)
def test_a_window_without_finished_work_is_booked_as_what_it_was(one: Window, part: str):
    assert set(divide(one, 0.25)) == {part}


def test_a_request_longer_than_a_window_takes_the_windows_it_spans():
    spanning = [window(unfinished=1), window(unfinished=1), window({"answer": counts(1, 0, 900)})]
    (whole,) = joined(spanning)
    assert divide(whole, 0.25) == {"answer": total(one.used for one in spanning)}


def test_requests_aborted_at_the_end_of_a_stage_are_lost_and_what_follows_waits():
    parts = [set(divide(one, 0.25)) for one in joined([window(unfinished=4), window(), window()])]
    assert parts == [{LOST}, {IDLE}]


def test_a_stage_keeps_what_was_open_at_its_end():
    first, second = joined([window(unfinished=4), window({"evaluate": counts(1, 0, 1)}, stage="evaluate-psi")])
    assert (first.stage, set(divide(first, 0.25))) == ("generate-psi", {LOST})
    assert (second.stage, second.used) == ("evaluate-psi", window().used)


@pytest.mark.parametrize(
    ("before", "now", "gain"),
    [
        (1_000, 4_000, (3_000, "measured")),
        (2**32 - 1_000, 2_000, (3_000, "measured")),
        (2**64 - 1_000, 2_000, (3_000, "measured")),
        (2**31, 2_000, (2_000, "estimated")),
        (2**40, 2_000, (2_000, "estimated")),
    ],
    ids=["rising", "wrapped at 32 bits", "wrapped at 64 bits", "driver restarted", "driver restarted after long"],
)
def test_a_counter_that_goes_back_has_wrapped_or_begun_again(before: int, now: int, gain: tuple[int, str]):
    assert counter_gain(before, now, 10_000) == gain


def per_accepted(joules_per_token: float, question: float, votes: float, answer: float, accepted_share: float) -> float:
    """Each draft costs its question and its voted answers, and a share of the drafts is accepted."""
    return joules_per_token * (question + votes * answer) / accepted_share


def test_the_break_even_table_of_the_method():
    # In units of the small model's energy for the tokens of one question; the large model takes 9 of them. An answer is as long as a
    # question (t_a = t_q = 1), but half as long in the cascade ("short answers"). The large model's rows are not voted on: v = 0.
    large = per_accepted(9, 1, 0, 1, 0.8)
    naive = per_accepted(1, 1, 5, 1, 0.3)
    fewer_votes = per_accepted(1, 1, 3, 1, 0.4)
    cascade = per_accepted(1, 1, 2.2, 0.5, 0.5)
    assert large == pytest.approx(11.25)
    assert naive == pytest.approx(20)
    assert round(naive / large, 1) == 1.8
    assert round(fewer_votes / large, 2) == 0.89
    assert round(cascade / large, 2) == 0.37
    principles = 1_000.0
    assert math.isinf(break_even_rows(principles, large, naive))
    assert break_even_rows(principles, large, fewer_votes) == pytest.approx(800)
    assert break_even_rows(principles, large, cascade) == pytest.approx(1_000 / 7.05)


def test_principles_pay_off_after_so_many_rows_or_never():
    assert break_even_rows(1_000, 10, 6) == 250
    assert math.isinf(break_even_rows(1_000, 6, 6))
    assert math.isinf(break_even_rows(1_000, 6, 10))


def test_the_users_carbon_intensity_goes_before_the_table():
    assert EnergyConfig().intensity is None
    assert EnergyConfig(region="FR").intensity == (56.0, 2023, "CodeCarbon's table")
    mine = EnergyConfig(region="FR", carbon_g_per_kwh=12.5, carbon_source="my supplier", carbon_year=2025)
    assert mine.intensity == (12.5, 2025, "my supplier")


@pytest.mark.parametrize(
    "values", [{"region": "XX"}, {"carbon_g_per_kwh": 10}, {"pue": 0.9}, {"watts_per_core": 0}], ids=str
)
def test_figures_without_source_or_sense_are_refused(values: dict[str, object]):
    with pytest.raises(ValidationError):
        EnergyConfig.model_validate(values)


def test_all_of_the_section_may_change_on_an_existing_run():
    assert EnergyConfig.operations == set(EnergyConfig.model_fields)
