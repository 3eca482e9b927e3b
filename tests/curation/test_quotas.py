from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from generation.config import CurationConfig, GenerationConfig, TaskConfig
from generation.curation.fold import CausalFold
from generation.curation.quotas import Quotas, cell_groups, quotas_of
from generation.instances.plan import Bundle, Cell, even_parts, unit_id
from generation.rows import Row
from generation.task import Task

TASK = Task(TaskConfig.model_validate({"name": "t", "description": "d", "answer": {"kind": "exact"}, "seeds": "x"}), ())
KINDS = tuple(
    (
        Bundle(f"{bundle}" * 32, (), "", ""),
        tuple(
            Cell(f"{bundle}{level}{label}", "", level, label, "at home") for level in ("easy", "hard") for label in "yn"
        ),
    )
    for bundle in "ab"
)
CELLS = [cell.cell_id for _, cells in KINDS for cell in cells]


def rows(seed: int, count: int = 150) -> list[Row]:
    """Of random cells, some far rarer than others; one in five repeats an earlier input."""
    rng = Random(seed)
    weights = [rng.choice((1, 1, 5)) for _ in CELLS]
    texts = [f"w{rng.randrange(count * 4)}" for _ in range(count)]
    return [
        Row(f"r{i}", unit_id(0, i // 8), i % 8, "t", "instance", input=text, answer="yes", cell=rng.choices(CELLS, weights)[0])
        for i, text in enumerate(texts)
    ]  # fmt: skip


def kept(quotas: Quotas, given_rows: list[Row]) -> list[Row]:
    verdicts = CausalFold(CurationConfig(), TASK, [], quotas, KINDS).fold(given_rows)
    return [row for row, verdict in zip(given_rows, verdicts, strict=True) if verdict.kept]


@pytest.mark.parametrize(
    ("per", "groups"),
    [
        ("cell", {f"bundle {'a' * 8} easy at home y", f"bundle {'b' * 8} hard at home n"}),
        ("difficulty", {"difficulty easy", "difficulty hard"}),
        ("label", {"label y", "label n"}),
        ("context", {"context at home"}),
    ],
)
def test_cells_are_grouped_by_what_the_recipe_names(per, groups):
    assert groups <= set(cell_groups(KINDS, per).values())
    assert len(set(cell_groups(KINDS, per).values())) == {"cell": 8, "context": 1}.get(per, 2)


def test_an_undivided_target_takes_rows_of_any_cell():
    assert quotas_of(5, "task", KINDS).shares == {"": 5}
    assert Quotas(5).group("of another plan") == ""
    assert quotas_of(5, "cell", KINDS).group("of another plan") is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from(["cell", "difficulty", "label", "context", "task"]))
def test_no_group_gets_more_than_its_even_part_and_none_waits_for_another(seed, target, per):
    quotas, given_rows = quotas_of(target, per, KINDS), rows(seed)
    found = Counter(quotas.group(row.cell) for row in kept(quotas, given_rows))
    names = list(dict.fromkeys(quotas.groups.values())) or [""]
    parts = dict(zip(names, even_parts(target, len(names)), strict=True))
    unique = {row.input: row for row in reversed(given_rows)}.values()
    candidates = Counter(quotas.group(row.cell) for row in unique)
    assert found == Counter({group: min(parts[group], candidates[group]) for group in names})


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(0, 40), st.sampled_from(["cell", "label", "task"]))
def test_a_larger_target_begins_with_the_rows_that_were_sealed(seed, target, more, per):
    given_rows = rows(seed)
    first = kept(quotas_of(target, per, KINDS), given_rows)
    grown = quotas_of(target + more, per, KINDS, [target])
    if len(first) == target:
        assert kept(grown, given_rows)[:target] == first
        found = Counter(grown.group(row.cell) for row in kept(grown, given_rows))
        assert all(found[group] <= share for group, share in grown.shares.items())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 150))
def test_any_split_into_batches_gives_the_same_verdicts(seed, cut):
    given_rows, quotas = rows(seed), quotas_of(40, "cell", KINDS, [16])
    whole, parts = (CausalFold(CurationConfig(), TASK, [], quotas, KINDS) for _ in range(2))
    assert parts.fold(given_rows[:cut]) + parts.fold(given_rows[cut:]) == whole.fold(given_rows)


def test_what_a_group_has_too_many_of_is_overshoot_and_says_of_which():
    fold = CausalFold(CurationConfig(), TASK, [], quotas_of(2, "difficulty", KINDS), KINDS)
    easy = [Row(f"r{i}", unit_id(0, 0), i, "t", "instance", input=f"w{i}", answer="a", cell="aeasyy") for i in range(3)]
    verdicts = fold.fold(easy)
    assert [(v.kept, v.stage, v.reason) for v in verdicts[1:]] == [
        (False, "overshoot", "beyond the target of difficulty easy")
    ] * 2
    assert (fold.missing("difficulty easy"), fold.missing("difficulty hard"), fold.beyond("difficulty easy")) == (
        0,
        1,
        2,
    )


def test_a_target_cannot_be_divided_by_what_the_recipe_does_not_have():
    with pytest.raises(ValidationError, match=r"target_per: 'difficulty'.*names none"):
        GenerationConfig.model_validate({"accepted_rows": 3, "target_per": "difficulty"})
