from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.report_files import open_run
from cluster.report_time import read_time
from cluster.time_ledger import PARTS, TimeLedger, from_json, parts, to_json
from generation.spent import Spent
from tests.cluster import fake_replicas as fake
from tests.cluster.test_generate import dataset_rows, generate, write_in_cells

amounts = st.floats(0, 1e6)
counts = st.integers(0, 10**9)
spents = st.builds(Spent, *[amounts] * 5, *[counts] * 5)


@given(spents, st.floats(0, 2))
def test_the_parts_add_up_to_all_of_the_time(spent: Spent, weight: float) -> None:
    found = parts(spent, weight)
    assert tuple(found) == PARTS
    assert sum(found.values()) == pytest.approx(spent.seconds)
    assert all(value >= -1e-6 for value in found.values())


def test_time_in_steps_is_divided_by_token_work() -> None:
    spent = Spent(busy_seconds=100, prompt_tokens=1000, cached_tokens=600, output_tokens=900, redone_tokens=90)
    found = parts(spent, 0.25)
    assert found["redone"] == pytest.approx(10)
    assert found["prefill"] == pytest.approx(90 * 100 / 1000)
    assert found["decode"] == pytest.approx(90 * 900 / 1000)
    assert parts(Spent(busy_seconds=3), 0.25)["decode"] == 3


def test_nothing_that_was_heard_is_lost_with_a_coordinator_or_a_replica() -> None:
    ledger = TimeLedger()
    ledger.hear({"a": Spent(boot_seconds=4), "b": Spent(boot_seconds=5)})
    ledger.hear({"a": Spent(boot_seconds=4, busy_seconds=2)})
    ledger.hear({"a": Spent(boot_seconds=1)})
    assert ledger.replicas == {"a": Spent(4, 0, 2), "b": Spent(5)}
    assert ledger.total == Spent(9, 0, 2)


@given(spents)
def test_a_line_brings_back_what_was_booked(spent: Spent) -> None:
    assert from_json(to_json(spent)).seconds == pytest.approx(spent.seconds, abs=0.01)
    assert from_json(to_json(spent)).output_tokens == spent.output_tokens


SPENT = Spent(3, 1, 10, 2, 4, steps=90, prompt_tokens=800, cached_tokens=600, output_tokens=700, redone_tokens=70)
CANARY = replace(
    SPENT, canary_steps=90, canary_prompt_tokens=810, canary_cached_tokens=405, canary_preemptions=2, canary_kv_use=45.0
)
VIEW = {"kv_use": 0.5, "preemptions": 2, "prefix_hit_share": 0.5, "counted_prefix_hit_share": 0.75}


def test_the_ledger_of_a_run_is_in_its_metrics_and_adds_up_over_restarts(tmp_path) -> None:
    run = fake.arm_run(tmp_path, generation={"accepted_rows": 200})
    with pytest.raises(KeyboardInterrupt):
        generate(run, fake.FakePool(write_in_cells({}), replicas=1, ticks=2, spent=SPENT))
    generate(run, fake.FakePool(write_in_cells({}), replicas=2, spent=CANARY))
    lines = [line for name in run.store.names("metrics") for line in run.store.read_lines(f"metrics/{name}")]
    assert from_json(lines[-1]["spent"]) == CANARY + CANARY
    assert [from_json(spent) for spent in lines[-1]["spent_by_replica"].values()] == [CANARY, CANARY]
    assert lines[-1]["accepted_tokens"] == 7 * len(dataset_rows(run))
    files = open_run(run.store)
    found = read_time(files, "psi")
    assert found["seconds"] == pytest.approx(parts(SPENT + SPENT + SPENT, 0.25))
    assert len(found["replicas"]) == 3
    assert list(found["canaries"].values()) == [VIEW, VIEW]
    assert found["prefix_hit_share"] == 0.75
    assert found["tokens"] == {"prompt": 2400, "cached": 1800, "generated": 2100, "redone": 210, "accepted": 1400}
    assert found["accepted_tokens_per_gpu_hour"] == pytest.approx(1400 / found["gpu_hours"])
    assert found["roofline"]["achievable"] == "n/a"
