from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from generation.config import AnswerConfig, CurationConfig, TaskConfig
from generation.curation.balance import ShareCap, bundle_shares, cell_shares
from generation.curation.fold import CausalFold
from generation.curation.quotas import Quotas
from generation.instances.plan import Bundle, Cell, unit_id
from generation.rows import Row
from generation.task import Task

TASK = Task(TaskConfig(name="t", description="d", answer=AnswerConfig(kind="exact"), seeds="s"), ())
KINDS = [
    (Bundle("b0", ("all", "p0", "p1"), "", ""), (Cell("c0", ""), Cell("c1", ""))),
    (Bundle("b1", ("all", "p1", "p2"), "", ""), (Cell("c2", ""),)),
    (Bundle("b2", ("all", "p2", "p0"), "", ""), (Cell("c3", ""), Cell("c4", ""))),
]
CELLS = ["c0", "c1", "c2", "c3", "c4"]
EVEN = [Fraction(1, n) for n in (6, 6, 3, 6, 6)]


def test_a_cap_that_the_plan_cannot_meet_is_relaxed_to_an_even_spread() -> None:
    assert cell_shares(KINDS, 0.2) == {c: max(Fraction(1, 5), even) for c, even in zip(CELLS, EVEN, strict=True)}
    # p0 is in two bundles of three: 0.8 leaves 0.4 for each, 0.5 would leave less than the even third.
    assert set(bundle_shares(KINDS, 0.8).values()) == {Fraction(2, 5)}
    assert set(bundle_shares(KINDS, 0.5).values()) == {Fraction(1, 3)}


def test_a_principle_that_every_bundle_holds_caps_nothing() -> None:
    assert bundle_shares([(bundle, cells) for bundle, cells in KINDS[:1]], 0.1) == {"b0": 1}


@settings(deadline=None)
@given(st.fractions(0, 1, max_denominator=50), st.integers(1, 40))
def test_a_value_fills_its_own_share_of_the_target(share: Fraction, target: int) -> None:
    cap = ShareCap(0.5, [target], {"x": share})
    filled = 0
    while filled < target and cap.admits("x", filled):
        cap.record("x")
        filled += 1
    assert filled == max(1, -(-share.numerator * target // share.denominator))


def stages(config: CurationConfig, target: int) -> list[str]:
    """Rows come from the first bundle for as long as it goes, then from all in turn."""
    places = [0] * 8 + [0, 1, 2] * 8
    rows = [
        Row(f"r{i}", unit_id(0, i), 0, "t", "instance", input=f"input {i}", answer="a",
            bundle=f"b{kind}", cell=KINDS[kind][1][i % len(KINDS[kind][1])].cell_id)
        for i, kind in enumerate(places)
    ]  # fmt: skip
    return [verdict.stage for verdict in CausalFold(config, TASK, [], Quotas(target), KINDS).fold(rows)]


def test_a_cell_and_a_principle_stop_at_their_share_and_the_target_is_still_reached() -> None:
    cells = stages(CurationConfig(max_cell_share=0.1), target=12)
    assert cells[:8] == ["", "", "", "", *["cell_share"] * 4]
    assert cells.count("") == 12
    principles = stages(CurationConfig(max_principle_share=0.1), target=12)
    assert principles[:8] == ["", "", "", "", *["principle_share"] * 4]
    assert principles.count("") == 12
    assert set(stages(CurationConfig(), target=12)) == {"", "overshoot"}
