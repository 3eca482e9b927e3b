from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.config import AnswerConfig, CurationConfig, TaskConfig
from generation.curation.counts import merge_counts
from generation.curation.fold import CausalFold, Verdict
from generation.curation.quotas import Quotas
from generation.errors import RecipeError, StorageError
from generation.instances.plan import unit_id
from generation.rows import Row
from generation.task import Seed, Task

SEED = "Ada sold twelve red apples at the market and then bought three pears"
EVALUATION = "A train leaves at 9 and drives 80 km each hour until 14, how far did it get by then in all"
ORIGINAL = (
    "Tom keeps forty bees in a wooden box behind the house and gives them sugar water every second morning while "
    "his sister Mia counts how many of them return before the sun goes down on the hill"
)


def make_task(labels: tuple[str, ...] = (), seeds: Sequence[str] = (SEED,)) -> Task:
    answer = AnswerConfig(kind="choice", labels=labels) if labels else AnswerConfig(kind="exact")
    config = TaskConfig(name="t", description="d", answer=answer, seeds="seeds.jsonl")
    return Task(config, tuple(Seed(str(i), text, "yes", split="demo") for i, text in enumerate(seeds)))


def make_rows(values: Sequence[tuple[str, str]]) -> list[Row]:
    return [
        Row(f"r{i}", unit_id(0, i // 4), i % 4, "t", "instance", input=text, answer=answer)
        for i, (text, answer) in enumerate(values)
    ]


def stages(verdicts: Sequence[Verdict]) -> list[str]:
    return [verdict.stage for verdict in verdicts]


def test_each_planted_row_is_dropped_at_its_stage_and_unrelated_rows_pass() -> None:
    planted = [
        (ORIGINAL, ""),
        (f" {ORIGINAL.upper()}", "exact_duplicate"),
        (ORIGINAL.replace("hill", "moor"), "near_duplicate"),
        (SEED, "copy"),
        (SEED.replace("Ada", "Bob").replace("three", "five"), "copy"),
        (EVALUATION, "contamination"),
        (EVALUATION.replace("9", "7").replace("80", "65").replace("14", "12"), "contamination"),
        ("x" * 9000, "bounds"),
        ("A quite different question about the depth of lakes", ""),
        ("badgc", ""),
        ("badgd", ""),
        ("BADGC", "exact_duplicate"),
        ("one row too many", "overshoot"),
    ]
    fold = CausalFold(CurationConfig(), make_task(), [(EVALUATION,)], Quotas(4))
    verdicts = fold.fold(make_rows([(text, "yes") for text, _ in planted]))
    assert stages(verdicts) == [stage for _, stage in planted]
    assert fold.kept == sum(verdict.kept for verdict in verdicts) == 4


def test_rejections_keep_their_stage_and_counts_add_up_from_stage_to_stage() -> None:
    rows = make_rows([("a", "yes"), ("b", "yes"), ("a", "yes"), ("c", "yes")])
    rejected = Row("r9", unit_id(1, 0), 0, "t", "rejection", stage="vote", reason="no majority", input="d")
    fold = CausalFold(CurationConfig(), make_task(), [], Quotas(2))
    verdicts = fold.fold([*rows, rejected])
    assert verdicts[-1] == Verdict("r9", False, "vote", "no majority")
    counts = fold.counts
    assert counts["vote"] == {"in": 5, "out": 4, "reasons": {"no majority": 1}}
    assert counts["exact_duplicate"]["out"] == 3
    assert counts["overshoot"] == {"in": 3, "out": 2, "reasons": {"beyond the target": 1}}
    both = merge_counts([counts, counts])
    assert both["vote"] == {"in": 10, "out": 8, "reasons": {"no majority": 2}}
    assert both["overshoot"]["out"] == 4


def test_a_row_that_its_own_filters_drop_excludes_nobody() -> None:
    task = make_task(labels=("yes", "no"))
    fold = CausalFold(CurationConfig(), task, [], Quotas(9))
    assert stages(fold.fold(make_rows([("abc", "maybe"), ("abc", "yes"), ("abc", "no")]))) == [
        "label",
        "",
        "exact_duplicate",
    ]


def test_a_candidate_that_a_cap_drops_still_excludes_its_duplicates() -> None:
    task = make_task(labels=("yes", "no"))
    fold = CausalFold(CurationConfig(max_label_share=0.5), task, [], Quotas(2))
    rows = make_rows([("a", "yes"), ("b", "yes"), ("b", "no"), ("c", "no")])
    assert stages(fold.fold(rows)) == ["", "label_share", "exact_duplicate", ""]


def test_an_opening_may_fill_its_share_only_and_short_inputs_have_none() -> None:
    fold = CausalFold(CurationConfig(max_opening_share=0.25), make_task(), [], Quotas(8))
    verdicts = fold.fold(make_rows([(f"How many {word} {i}", "yes") for i, word in enumerate(["ants"] * 4)]))
    assert stages(verdicts) == ["", "", "opening_share", "opening_share"]
    fold = CausalFold(CurationConfig(max_opening_share=0.01), make_task(), [], Quotas(8))
    assert not any(stages(fold.fold(make_rows([(word, "yes") for word in "abcdefgh"]))))


def test_without_caps_a_task_of_fixed_wording_and_one_label_fills_its_target() -> None:
    fold = CausalFold(CurationConfig(), make_task(), [], Quotas(8))
    fold.fold(make_rows([(f"How many letters are in {word * 5}", "yes") for word in "abcdefgh"]))
    assert fold.kept == 8


def test_a_cap_that_no_dataset_can_obey_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"max_label_share = 0\.3"):
        CausalFold(CurationConfig(max_label_share=0.3), make_task(labels=("a", "b", "c")), [], Quotas(10))


def test_rows_out_of_plan_order_or_of_another_task_are_refused() -> None:
    fold = CausalFold(CurationConfig(), make_task(), [], Quotas(9))
    rows = make_rows([("a", "yes"), ("b", "yes")])
    with pytest.raises(StorageError, match="plan order"):
        fold.fold(rows[::-1])
    with pytest.raises(StorageError, match="'u'"):
        fold.fold([Row("x", unit_id(2, 0), 0, "u", "instance", input="c", answer="yes")])


def test_of_two_rows_of_a_unit_that_are_alike_the_better_one_stays_and_earlier_units_come_first() -> None:
    texts = [
        "Tom sold nine red pears to Mia",
        "Tom sold nine red pears to Mia!",
        "tom sold nine red pears, to Mia",
        "badgc",
    ]
    rows = [
        Row(f"r{i}", unit_id(0, i // 3), i, "t", "instance", input=text, answer="yes", agreement=agreement)
        for i, (text, agreement) in enumerate(zip([*texts, texts[0] + "?"], [0.5, 1.0, 1.0, 1.0, 1.0], strict=True))
    ]
    rows[2] = rows[2]._replace(rationale="longer than none")
    fold = CausalFold(CurationConfig(semantic_duplicate=0.8, near_duplicate=None), make_task(), [], Quotas(9))
    worse = "semantic_duplicate"
    assert stages(fold.fold(rows)) == [worse, "", worse, "", worse]
    with pytest.raises(StorageError, match="whole"):
        fold.fold([Row("r9", unit_id(0, 1), 9, "t", "instance", input="egg", answer="yes")])


def sentence(rng: Random) -> str:
    base = ORIGINAL.split() if rng.random() < 0.5 else SEED.split()
    length = rng.choice([1, 1, 2, 4, 6, len(base)])
    words = base[:length]
    if rng.random() < 0.6:
        words[rng.randrange(length)] = rng.choice(["fox", "9", "10", "zebra", "lake"])
    return " ".join(words)


def random_rows(seed: int) -> list[Row]:
    rng = Random(seed)
    rows = make_rows([(sentence(rng), rng.choice(["yes", "no", "no", "perhaps"])) for _ in range(60)])
    for i in rng.sample(range(60), 10):
        rows[i] = Row(f"r{i}", rows[i].unit, rows[i].index, "t", "rejection", stage="parse", reason="no input")
    return rows


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(0, 60), max_size=6),
    st.sampled_from([5, 20, 100]),
    st.sampled_from([0.5, 0.6, 1.0]),
)
def test_any_split_into_batches_gives_the_same_verdicts(seed: int, cuts: list[int], target: int, share: float) -> None:
    config = CurationConfig(max_label_share=share, max_opening_share=share, near_duplicate=0.6)
    task = make_task(labels=("yes", "no"))
    rows = random_rows(seed)
    whole = CausalFold(config, task, [(EVALUATION,)], Quotas(target))
    parts = CausalFold(config, task, [(EVALUATION,)], Quotas(target))
    edges = [0, *sorted(cuts), len(rows)]
    verdicts = [v for a, b in pairwise(edges) for v in parts.fold(rows[a:b])]
    assert verdicts == whole.fold(rows)
    assert parts.counts == whole.counts
    assert whole.counts["overshoot"]["out"] == whole.kept <= target


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(0, 20), st.sampled_from([0.5, 0.7, 1.0]))
def test_a_larger_target_keeps_the_same_rows_first(seed: int, target: int, more: int, share: float) -> None:
    config = CurationConfig(max_label_share=share, max_opening_share=share)
    task = make_task(labels=("yes", "no"))
    rows = random_rows(seed)
    small = CausalFold(config, task, [], Quotas(target))
    kept = [v.row_id for v in small.fold(rows) if v.kept]
    if small.kept == target:
        large = CausalFold(config, task, [], Quotas(target + more, (target,)))
        assert [v.row_id for v in large.fold(rows) if v.kept][:target] == kept
