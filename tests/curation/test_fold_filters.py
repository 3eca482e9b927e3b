"""The fold with every filter on, over rows that get as far as the last of them."""

import itertools
from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from generation.config import CurationConfig
from generation.curation.fold import CausalFold
from generation.curation.quotas import Quotas
from generation.instances.plan import Bundle, Cell
from generation.rows import Row
from tests.curation.test_fold import EVALUATION, make_rows, make_task, stages

KINDS = [
    (Bundle(f"b{i}", (f"p{i}", f"p{(i + 1) % 3}"), "", ""), (Cell(f"c{i}", ""), Cell(f"d{i}", ""))) for i in range(3)
]
ALL_ON = CurationConfig(
    semantic_duplicate=0.7,
    max_cell_share=0.3,
    max_principle_share=0.3,
    max_label_share=0.6,
    max_opening_share=0.4,
)
WORDS = [
    f"{start}{end}" for start in ("ka", "lo", "mi", "ren", "su", "tor") for end in ("bel", "dan", "fir", "gos", "hum")
]
LIKE_ROWS = make_task(
    ("yes", "no"), [f"Please count all the {word}s that you can see in this room" for word in WORDS[:13]]
)


def kept_or_capped_rows(seed: int) -> list[Row]:
    """Rows as long as the seeds of `LIKE_ROWS`, with repetitions and with favourites among openings, labels, cells and bundles."""
    rng = Random(seed)
    texts: list[str] = []
    for _ in range(60):
        words = [
            rng.choice(["How many big", "How many big", "Tell me which", "Who has seen"]),
            *rng.choices(WORDS, k=9),
        ]
        if texts and rng.random() < 0.3:
            words = rng.choice(texts).split()
            words[rng.randrange(3, len(words))] = rng.choice(WORDS)
        texts.append(" ".join(words))
    return [
        row._replace(
            cell=rng.choice(["c0", "c0", "c1", "c2", "d0", "d1"]),
            bundle=rng.choice(["b0", "b0", "b1", "b2"]),
            agreement=rng.choice([0.5, 0.75, 1.0]),
        )
        for row in make_rows([(text, rng.choice(["yes", "yes", "no"])) for text in texts])
    ]


def test_every_filter_that_is_on_drops_some_of_the_rows_made_for_it() -> None:
    dropped = Counter[str]()
    for seed, target in itertools.product(range(8), (5, 20)):
        fold = CausalFold(ALL_ON, LIKE_ROWS, [(EVALUATION,)], Quotas(target), KINDS)
        dropped.update(stages(fold.fold(kept_or_capped_rows(seed))))
    shares = {"label_share", "opening_share", "cell_share", "principle_share"}
    assert set(dropped) >= {"", "semantic_duplicate", "overshoot"} | shares
    assert dropped[""] >= 8 * (4 + 15)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 15), max_size=6), st.sampled_from([5, 20, 100]))
def test_any_split_between_units_and_any_later_target_give_the_same_rows_with_all_filters_on(
    seed: int, cuts: list[int], target: int
) -> None:
    rows = kept_or_capped_rows(seed)
    whole = CausalFold(ALL_ON, LIKE_ROWS, [(EVALUATION,)], Quotas(target), KINDS)
    parts = CausalFold(ALL_ON, LIKE_ROWS, [(EVALUATION,)], Quotas(target), KINDS)
    edges = [0, *sorted(4 * cut for cut in cuts), len(rows)]
    verdicts = whole.fold(rows)
    assert [v for a, b in itertools.pairwise(edges) for v in parts.fold(rows[a:b])] == verdicts
    assert parts.counts == whole.counts
    larger = CausalFold(ALL_ON, LIKE_ROWS, [(EVALUATION,)], Quotas(target + 7, (target,)), KINDS)
    kept = [v.row_id for v in larger.fold(rows) if v.kept]
    assert kept[: whole.kept] == [v.row_id for v in verdicts if v.kept] != []
