"""How much work to plan next: enough that no replica waits, and never so much that more than two leases a replica are in vain. Pure.

A flow of the plan that is not folded yet brings one row at most, so what the plan could bring is known before it is there:

    excess = rows kept or possible beyond what is wanted, summed over the groups of cells that have a target of their own

The plan grows only as far as the excess of all tasks stays within `LEASES_AHEAD` leases of every replica. That holds whatever the yield turns
out to be. It also bounds the plan where the fold lags behind the replicas: units that are committed count with their instances alone,
which the manifest tells before they are folded, so generation runs ahead of the fold until there are as many instances as rows are
wanted.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.ledger import MAX_UNITS_PER_LEASE
from generation.instances.plan import PlanRecord

MARGIN = 1.1
LEASES_AHEAD = 2
"""Per replica: one in work, one waiting."""


@dataclass(frozen=True, slots=True)
class Need:
    """Where one group of cells stands.

    Attributes:
        missing: Rows that it lacks.
        beyond: Rows dropped because it had its part.
        outstanding: Flows that are planned and not folded.
        possible: Rows that these could bring at most: units that are committed are known to bring no more than their instances.
        share: Rows that one flow of it is expected to bring, in (0, 1].
    """

    missing: int
    beyond: int
    outstanding: int
    possible: int
    share: float

    @property
    def wanted(self) -> int:
        """Flows to plan: what is missing divided by the expected share, with a margin of 10 %, less what is under way."""
        if self.missing <= 0:
            return 0
        return max(0, math.ceil(self.missing * MARGIN / self.share) - self.outstanding)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one task stands.

    Attributes:
        needs: By group.
        planned: Units in the plan.
        settled: Units whose fate is final, folded or not.
    """

    needs: Mapping[str, Need]
    planned: int
    settled: int

    @property
    def lacks(self) -> bool:
        """Whether rows are missing."""
        return any(need.missing > 0 for need in self.needs.values())

    def excess(self, flows: Mapping[str, int] | None = None) -> int:
        """Rows that may be in vain if so many flows of each group are planned on top."""
        more = flows or {}
        return sum(
            max(0, need.beyond + need.possible + more.get(group, 0) - max(0, need.missing))
            for group, need in self.needs.items()
        )


class Allowance:
    """Divides the rows that may be in vain among tasks. One unit is each task's own; the others go where they are needed.

    Args:
        standings: Of all tasks, complete ones included.
        flows_per_unit: Flows in each unit.
        replicas: Replicas that share the work.
    """

    def __init__(self, standings: Sequence[Standing], flows_per_unit: int, replicas: int) -> None:
        self._unit = flows_per_unit
        common = units_ahead(replicas) * flows_per_unit - len(standings) * flows_per_unit
        used = sum(self._beyond_own(standing.excess()) for standing in standings)
        self._left = max(0, common - used)
        self._sharing = sum(standing.lacks for standing in standings)

    def limit(self, standing: Standing) -> int:
        """The excess that the next task which lacks rows may reach."""
        return max(standing.excess(), self._unit) + self._left // max(1, self._sharing)

    def take(self, before: int, after: int) -> None:
        """The task's excess went from `before` to `after`."""
        self._sharing -= 1
        self._left -= self._beyond_own(after) - self._beyond_own(before)

    def _beyond_own(self, excess: int) -> int:
        return max(0, excess - self._unit)


def units_ahead(replicas: int) -> int:
    """Units to be had that keep every replica busy."""
    return LEASES_AHEAD * MAX_UNITS_PER_LEASE * replicas


def units_wanted(standing: Standing, flows_per_unit: int, replicas: int, leased: int) -> int:
    """Units that the missing rows call for, as far as the plan should go now: a plan that is made early knows little.

    No more units are open than were settled already, or than `units_ahead` beyond those in the hands of replicas. A replica holds far
    more than it has requests in flight for: flows of a mean of 126 tokens and a longest of 800 keep a unit of 64 open for six times as
    long as most of them take, so an engine of 256 sequences holds about 25 such units.

    Where that is less than is called for, the plan goes on only once half of `units_ahead` fits: not with each unit that a replica takes.
    """
    wanted = math.ceil(sum(need.wanted for need in standing.needs.values()) / flows_per_unit)
    ahead = max(units_ahead(replicas) + leased, standing.settled) - (standing.planned - standing.settled)
    if wanted <= ahead:
        return wanted
    return ahead if ahead >= units_ahead(replicas) // 2 else 0


def replicas_needed(standings: Sequence[Standing], flows_per_unit: int) -> int:
    """How many replicas can have a unit at once from now on: for those under way, those still to be planned, and one that is lost.

    All, until a task has more behind it than before it: how much is left is not known well before.
    """
    units = 1
    for standing in standings:
        if standing.lacks:
            wanted = sum(need.wanted for need in standing.needs.values())
            left = standing.planned - standing.settled + math.ceil(wanted / flows_per_unit)
            units += left if left <= standing.settled else sys.maxsize
    return units


def fitting(
    units: int, make: Callable[[int], list[PlanRecord]], standing: Standing, groups: Callable[[str], str], limit: int
) -> list[PlanRecord]:
    """Records for as many of `units` as keep the excess within the limit; for one in any case where nothing is under way.

    Args:
        units: Units that are wanted.
        make: Records for so many units.
        standing: Where the task stands.
        groups: Cell id to group.
        limit: Of the excess.
    """
    idle = not any(need.possible for need in standing.needs.values())
    while units > 0:
        records = make(units)
        if standing.excess(flows_of(records, groups)) <= limit or (idle and units == 1):
            return records
        units -= max(1, units // 8)
    return []


def flows_of(records: Sequence[PlanRecord], groups: Callable[[str], str]) -> dict[str, int]:
    """Flows of each group in some plan records."""
    flows: dict[str, int] = {}
    for record in records:
        for cell, number in zip(record.cells, record.cell_flows, strict=True):
            group = groups(cell.cell_id)
            flows[group] = flows.get(group, 0) + number
    return flows
