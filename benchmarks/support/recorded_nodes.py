"""Nodes of a table that come, drain and die at their times, and where Ray would put replicas on them; all on a clock of its own.

`nodes.csv` has a line a node, all of the same size: when it joins, when it is told to go, when it is gone, and after how long an engine
dies there each time, in seconds; what never happens is empty.
"""

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ray.exceptions import ActorDiedError

from cluster.nodes import Node
from cluster.placement import Placement
from cluster.pool_member import Member
from generation.engines.config import PoolConfig
from generation.errors import EngineDeadError

TABLE = Path(__file__).with_name("nodes.csv")
GPUS_PER_NODE = 8
BOOT_SECONDS = 60.0
NEVER = float("inf")
_RESOURCES = {"CPU": 64.0, "GPU": float(GPUS_PER_NODE)}


@dataclass(frozen=True, slots=True)
class NodeStory:
    """A line of the table; times on its clock, `NEVER` where something does not happen."""

    name: str
    joins: float
    told: float
    gone: float
    engines_die_after: float

    def is_there(self, now: float) -> bool:
        """Whether it takes replicas."""
        return self.joins <= now < min(self.told, self.gone)


def read_table(path: Path = TABLE) -> list[NodeStory]:
    """The nodes of a table."""
    with path.open(newline="", encoding="utf-8") as lines:
        return [
            NodeStory(name, *(float(value) if value else NEVER for value in times))
            for name, *times in list(csv.reader(lines))[1:]
        ]


class StandInMember(Member):
    """A replica that answers nothing and is asked nothing."""

    __slots__ = ("avoid", "booted")

    def locate(self) -> None:
        """Its node is known once it has one."""

    def trouble(self) -> str:
        """None."""
        return ""

    def drain(self) -> None:
        """It has nothing to hand in."""
        self.draining = True

    def end(self) -> None:
        """The table looks for it itself."""


class RecordedNodes:
    """Ray on the nodes of a table: gives each replica a free GPU of a node that it does not avoid, in the order of their requests.

    Attributes:
        now: Seconds since the beginning.
        started: Replicas that were asked for.
    """

    def __init__(self, table: list[NodeStory]) -> None:
        self.now = 0.0
        self.started = 0
        self._table = {story.name: story for story in table}
        self._free = dict.fromkeys(self._table, GPUS_PER_NODE)
        self._waiting: deque[StandInMember] = deque()
        self._placed: list[StandInMember] = []

    def clock(self) -> float:
        """What `time.monotonic` is while the table is played."""
        return self.now

    def start_member(self, pool: str, number: int, _: PoolConfig, placement: Placement, rung: int) -> StandInMember:
        """In place of `cluster.pool_member.start_member`."""
        self.started += 1
        member = StandInMember(number, f"{pool}-{number}-{self.started}", rung, None, None, None)
        member.avoid, member.booted = frozenset(placement.avoid), NEVER
        self._waiting.append(member)
        return member

    def live_nodes(self) -> dict[str, Node]:
        """In place of `cluster.nodes._live_nodes`."""
        there = [each for each in self._table.values() if each.joins <= self.now < each.gone]
        return {each.name: Node(each.name, each.told <= self.now, _RESOURCES) for each in there}

    def good(self) -> set[str]:
        """Nodes that are there and where engines live."""
        return {
            each.name for each in self._table.values() if each.is_there(self.now) and each.engines_die_after == NEVER
        }

    def advance(self, seconds: float, members: list[Member]) -> Iterator[tuple[Member, Exception | None]]:
        """Let time go on; gives each member that is ready by then, and each that has died, with its error."""
        self.now += seconds
        self._forget({id(member) for member in members})
        self._place()
        for member in list(self._placed):
            story = self._table[member.node]
            if story.gone <= self.now:
                yield member, ActorDiedError()
            elif self.now - member.booted >= story.engines_die_after:
                yield member, EngineDeadError("the engine died")
            elif member.info is None and member.booted <= self.now:
                yield member, None

    def _forget(self, there: set[int]) -> None:
        """Free what members held that the crew has ended."""
        for member in self._placed:
            if id(member) not in there:
                self._free[member.node] += 1
        self._placed = [member for member in self._placed if id(member) in there]
        self._waiting = deque(member for member in self._waiting if id(member) in there)

    def _place(self) -> None:
        free = [name for name, each in self._table.items() if self._free[name] and each.is_there(self.now)]
        for _ in range(len(self._waiting) if free else 0):
            member = self._waiting.popleft()
            node = next((name for name in free if name not in member.avoid), None)
            if node is None:
                self._waiting.append(member)
                continue
            member.node, member.booted = node, self.now + BOOT_SECONDS
            self._placed.append(member)
            self._free[node] -= 1
            if not self._free[node]:
                free.remove(node)
