"""On which cells to work next, from what was accepted so far. Pure; chance comes in as a generator of numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from generation.instances.plan import Bundle, Cell, PlanRecord
from generation.storage import digest

FLOOR_SHARE = 0.25
"""Of a wave, spread evenly over the open cells: each gets at least 1 / (4 cells)."""
_DRAWS = 256


@dataclass(frozen=True, slots=True)
class CellStanding:
    """What the last flows of one cell brought.

    Attributes:
        flows: How many are looked at.
        new: Rows kept of them.
        repeated: Rows dropped because an earlier one has nearly the same input.
        seen: Drafts dropped because their input was accepted before; no vote was held on them.
        failed: Drafts that were not, and were dropped for something else, such as their vote.
    """

    flows: int = 0
    new: int = 0
    repeated: int = 0
    seen: int = 0
    failed: int = 0

    def is_spent(self, min_novelty: float) -> bool:
        """Whether too little of what it drafts is new: not accepted before, and, as far as rows tell, not like an accepted one.

        Both shares are taken of what could show it, so that a hard vote does not count as repetition: of 100 drafts 50 are seen, 47 fail
        and 3 are kept, and half is new. Neither counts below 1 / `min_novelty` drafts or rows: they could not tell.
        """
        accepted = self.new + self.repeated
        drafted = accepted + self.failed + self.seen
        unseen = (drafted - self.seen) / drafted if drafted * min_novelty >= 1 else 1.0
        unlike = self.new / accepted if accepted * min_novelty >= 1 else 1.0
        return unseen * unlike < min_novelty


@dataclass(frozen=True, slots=True)
class WaveOrder:
    """What a wave of a task shall be.

    Attributes:
        task: Its name.
        units: Units to plan.
        first_index: Index of the first plan record.
        flows_per_unit: Flows in each unit.
        draft_temperature: For its drafts; None: the recipe's.
    """

    task: str
    units: int
    first_index: int
    flows_per_unit: int
    draft_temperature: float | None = None


def chance(seed: int, task: str, index: int) -> np.random.Generator:
    """The numbers that a wave is drawn with: the same for the same seed, task and plan record."""
    return np.random.default_rng(int(digest("wave", str(seed), task, str(index)), 16))


def open_cells(standings: Mapping[str, CellStanding], min_novelty: float) -> list[str]:
    """Cells that still bring something new; where all are spent, the one that brings most, the earliest of equals."""
    found = [cell for cell, standing in standings.items() if not standing.is_spent(min_novelty)]
    return found or [max(standings, key=lambda cell: standings[cell].new / max(1, standings[cell].flows))]


def cell_weights(
    standings: Mapping[str, CellStanding], min_novelty: float, rng: np.random.Generator
) -> dict[str, float]:
    """The share of the next flows that each open cell shall have: even before anything is known, then by Thompson sampling.

    A quarter is spread evenly. The rest goes to each cell as often as it wins a draw from all cells' Beta(1 + new, 1 + not new).

    Source:
        Thompson 1933, Biometrika 25; the floor is ours.
    """
    cells = open_cells(standings, min_novelty)
    known = [standings[cell] for cell in cells]
    if not any(standing.flows for standing in standings.values()):
        return dict.fromkeys(cells, 1 / len(cells))
    new = np.array([standing.new for standing in known])
    flows = np.array([standing.flows for standing in known])
    best = rng.beta(1 + new, 1 + flows - new, size=(_DRAWS, len(cells))).argmax(axis=1)
    wins = np.bincount(best, minlength=len(cells)) / _DRAWS
    shares = FLOOR_SHARE / len(cells) + (1 - FLOOR_SHARE) * wins
    return dict(zip(cells, shares.tolist(), strict=True))


def weights_by_need(
    standings: Mapping[str, CellStanding],
    groups: Mapping[str, Sequence[str]],
    wanted: Mapping[str, int],
    min_novelty: float,
    rng: np.random.Generator,
) -> dict[str, float]:
    """`cell_weights` within each group of cells, and among groups by the flows that each wants; some must want any."""
    total = sum(wanted.values())
    return {
        cell: weight * wanted[group] / total
        for group, cells in groups.items()
        if wanted[group]
        for cell, weight in cell_weights({cell: standings[cell] for cell in cells}, min_novelty, rng).items()
    }


def wave(
    order: WaveOrder,
    kinds: Sequence[tuple[Bundle, tuple[Cell, ...]]],
    weights: Mapping[str, float],
    rng: np.random.Generator,
) -> list[PlanRecord]:
    """Plan records for a wave: one for each bundle that gets units, so that units of a bundle stay together.

    Args:
        order: How much.
        kinds: The task's bundles with their cells.
        weights: Share of the flows of each cell (`cell_weights`); others get none. Whole units go to bundles, so a small wave obeys
            it on average only.
        rng: Rounds (`chance`).
    """
    of_cells = [[weights.get(cell.cell_id, 0.0) for cell in cells] for _, cells in kinds]
    units = _parts(order.units, [sum(shares) for shares in of_cells], rng.random())
    records: list[PlanRecord] = []
    for (bundle, cells), shares, count in zip(kinds, of_cells, units, strict=True):
        if not count:
            continue
        flows = _parts(count * order.flows_per_unit, shares, rng.random())
        working = [(cell, number) for cell, number in zip(cells, flows, strict=True) if number]
        records.append(
            PlanRecord(
                index=order.first_index + len(records),
                task=order.task,
                round=0,
                bundle=bundle,
                cells=tuple(cell for cell, _ in working),
                num_units=count,
                flows_per_unit=order.flows_per_unit,
                cell_flows=tuple(number for _, number in working),
                draft_temperature=order.draft_temperature,
            )
        )
    return records


def ramped(ramp: tuple[float, float] | None, kept: int, target: int) -> float | None:
    """The draft temperature on a ramp from an empty pool of rows to a full one, in steps of 0.01; None without a ramp."""
    if ramp is None:
        return None
    start, end = ramp
    return round(start + (end - start) * min(1.0, kept / target), 2)


def _parts(total: int, weights: Sequence[float], offset: float) -> list[int]:
    """`total` in whole parts that are within one of their weights' shares, and equal to them on average over `offset` in [0, 1).

    Source:
        Systematic sampling: Madow and Madow 1944, Annals of Mathematical Statistics 15.
    """
    ends = [weight / sum(weights) * total for weight in accumulate(weights)]
    marks = [0, *(math.floor(end + offset) for end in ends[:-1]), total]
    return [after - before for before, after in pairwise(marks)]
