"""How much work to plan next, from what was accepted so far. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from generation.instances.plan import Bundle, Cell, PlanRecord

MARGIN = 1.1
UNITS_AHEAD_PER_REPLICA = 4
"""One lease of full size in work, one waiting."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one task stands.

    Attributes:
        kept: Rows kept by curation.
        target: Rows wanted.
        planned: Units in the plan.
        folded: Units that curation has seen; given-up ones count.
        recent_flows: Flows of the units that it saw last.
        recent_kept: Rows kept of them.
    """

    kept: int
    target: int
    planned: int
    folded: int
    recent_flows: int
    recent_kept: int


def units_to_plan(standing: Standing, flows_per_unit: int, replicas: int) -> int:
    """Units to add to a task's plan now.

    Until the first units are folded, only what keeps the replicas busy, and no more than a yield of 1 would need. Later what is missing
    divided by the recent yield, with a margin of 10 %, but at most as much as was folded already: an estimate from few units is rough.
    """
    missing = standing.target - standing.kept
    outstanding = standing.planned - standing.folded
    ahead = UNITS_AHEAD_PER_REPLICA * replicas
    if missing <= 0 or outstanding >= ahead:
        return 0
    rough = (standing.recent_kept + 0.5) / (standing.recent_flows + 1)
    share = rough if standing.folded else 1.0
    wanted = math.ceil(missing * MARGIN / share / flows_per_unit)
    return max(0, min(wanted, max(ahead, standing.folded)) - outstanding)


def wave(
    task: str,
    kinds: Sequence[tuple[Bundle, tuple[Cell, ...]]],
    units: int,
    planned: int,
    first_index: int,
    flows_per_unit: int,
) -> list[PlanRecord]:
    """Plan records for `units` units of a task, shared evenly between its bundles.

    Args:
        task: Its name.
        kinds: Its bundles with their cells.
        units: Units to plan.
        planned: Units planned before: the bundle that is next in turn follows from it.
        first_index: Index of the first record.
        flows_per_unit: Flows in each unit.
    """
    shares = [len(range((k - planned) % len(kinds), units, len(kinds))) for k in range(len(kinds))]
    turns = [(planned + i) % len(kinds) for i in range(len(kinds))]
    chosen = [(kinds[k], shares[k]) for k in turns if shares[k]]
    return [
        PlanRecord(first_index + i, task, 0, bundle, cells, count, flows_per_unit)
        for i, ((bundle, cells), count) in enumerate(chosen)
    ]
