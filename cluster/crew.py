"""The replicas that a pool has and shall have: started all at once, watched, and replaced when they or their nodes go."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from cluster.deaths import Deaths
from cluster.engine_count import EngineCount, EngineCounter
from cluster.nodes import NodeWatch
from cluster.placement import needed, none_in_time, plan_placement
from cluster.pool_member import Member, explained_within, is_memory, is_unexplained, start_member
from generation.engines.config import PoolConfig
from generation.engines.presets import MAX_RUNG
from generation.errors import EngineDeadError, EngineError, GaveUpError

MEMORY_SECONDS = 10.0
"""How long the memory of a dead engine may take to come free."""
_RECALL_FACTOR = 2
_RETRY_SECONDS, _MAX_RETRY_SECONDS = 5.0, 60.0

_log = logging.getLogger(__name__)

Gone = Callable[[Member, str, bool], None]


class Crew:
    """Members of one pool. One thread uses it.

    Args:
        name: Of the pool.
        config: Its section of the recipe.
        limit: Deaths within an hour, with nothing done in between, that are too many after one more.
        on_gone: Told of each member that is gone, why, and whether its units may be to blame.
    """

    def __init__(self, name: str, config: PoolConfig, limit: int, on_gone: Gone) -> None:
        self.members: list[Member] = []
        self.deaths = Deaths(limit)
        self._name = name
        self._config = config
        self._on_gone = on_gone
        self._vacant: dict[int, float] = {}
        self._failed_starts: dict[int, int] = {}
        self._unexplained: list[tuple[float, Member, Exception]] = []
        self._nodes = NodeWatch(name, needed(config))
        self._avoided = frozenset[str]()
        self._rung, self._was_ready = 0, False
        self._alone_since = time.monotonic()
        self._counter = EngineCounter(config.full_within_seconds)

    def ready(self) -> list[Member]:
        """Those that take work."""
        return [member for member in self.members if member.info is not None and not member.draining]

    def count(self) -> EngineCount:
        """How many there are, and should be."""
        draining = [member.draining for member in self.members if member.node]
        wanted, ready = len(self._taken()), len(self.ready())
        return self._counter.count(wanted, ready, len(draining), time.monotonic(), draining=sum(draining))

    def fill(self) -> None:
        """Have every place of the pool filled again, also those of replicas that had left."""
        taken = self._taken()
        if not taken:
            self._alone_since = time.monotonic()
        self._vacant |= {number: 0.0 for number in range(self._config.replicas) if number not in taken}
        self._start_due()

    def is_short_of(self, replicas: int) -> bool:
        """Whether some have left, and far more are needed than are there: starting one takes minutes, which a few units are not worth."""
        here = sum(member.info is None or member.generating is not None for member in self.members) + len(self._vacant)
        return here < self._config.replicas and _RECALL_FACTOR * here <= replicas

    def withdraw(self, replicas: int) -> None:
        """So many are needed: where so many have a node, wait for no more nodes. What waits has an autoscaler bring them."""
        if sum(bool(member.node) and not member.draining for member in self.members) >= replicas:
            for member in [member for member in self.members if not member.node]:
                self.release(member, "it is not needed any more")

    def joined(self, member: Member, info: Any) -> None:
        """Its engine is ready."""
        member.info = info
        member.watch()
        self._was_ready = True
        self._failed_starts.pop(member.number, None)

    def tend(self) -> None:
        """Look for members and nodes in trouble, and start what is due. Never waits.

        Raises:
            EngineError: No replica is left, and none became ready in `start_timeout_seconds`.
            GaveUpError: Too many replicas died.
        """
        for member in self.members:
            member.locate()
        if self._nodes.due:
            self._look_at_nodes()
        for member in [member for member in self.members if member.info is not None]:
            if reason := member.trouble():
                self.lose(member, EngineDeadError(reason))
        self._explain()
        self._start_due()
        self._refuse_to_stay_alone()

    def lose(self, member: Member, error: Exception) -> None:
        """It is dead, or must be: kill it for good, and start another.

        Raises:
            EngineError: No replica could ever be started.
            GaveUpError: Too many replicas died.
        """
        if member not in self.members:
            return
        self._remove(member)
        if is_unexplained(error) and not is_memory(error) and not member.draining:
            self._vacant[member.number] = 0.0
            self._unexplained.append((time.monotonic() + explained_within(error), member, error))
            self._look_at_nodes()
            self._explain()
        elif member.draining or isinstance(error, GaveUpError):
            self._node_went(member, str(error))
        else:
            self._engine_died(member, error)

    def failed_to_start(self, member: Member, error: Exception) -> None:
        """Its engine cannot be built. Others may be, on better nodes.

        Raises:
            EngineError: No replica could ever be started.
            GaveUpError: Too many failed, and no other is ready.
        """
        if is_memory(error) or not isinstance(error, EngineError):
            self.lose(member, error)
            return
        self._remove(member)
        self._bad_start(member, error)

    def release(self, member: Member, reason: str) -> None:
        """It is done, and its place is not filled again before `fill`."""
        self._remove(member)
        self._on_gone(member, reason, False)

    def close(self) -> None:
        """Kill all."""
        for member in list(self.members):
            self._remove(member)
        self._vacant, self._unexplained = {}, []

    def _engine_died(self, member: Member, error: Exception) -> None:
        short, now = is_memory(error), time.monotonic()
        if short and member.rung < MAX_RUNG:
            self._rung = max(self._rung, member.rung + 1)
            _log.warning(
                "replica %s ran out of memory; pool '%s' goes on with %d of %d steps less: %s",
                member.replica_id, self._name, self._rung, MAX_RUNG, error,
            )  # fmt: skip
            self._vacant[member.number] = now + MEMORY_SECONDS
            self._on_gone(member, str(error), False)
        elif short and member.info is None:
            self._bad_start(member, error)
        else:
            self._vacant[member.number] = 0.0
            self._count(member, error)

    def _bad_start(self, member: Member, error: Exception) -> None:
        starting = any(each.info is None for each in self.members)
        if not self._was_ready and not starting:
            raise error
        tries = self._failed_starts[member.number] = self._failed_starts.get(member.number, 0) + 1
        self._vacant[member.number] = time.monotonic() + min(_RETRY_SECONDS * 2**tries, _MAX_RETRY_SECONDS)
        if self.ready() or starting:
            _log.warning("replica %s cannot start; the others go on: %s", member.replica_id, error)
            self.deaths.blame_node(member.node, time.monotonic())
            self._on_gone(member, str(error), False)
        else:
            self._count(member, error)

    def _count(self, member: Member, error: Exception) -> None:
        self.deaths.add(member.node, time.monotonic())
        count = self.deaths.fruitless
        _log.warning("replica %s is gone (%d of pool '%s'): %s", member.replica_id, count, self._name, error)
        self._on_gone(member, str(error), True)
        if self.deaths.too_many:
            raise GaveUpError(
                f"pool '{self._name}': {count} replicas died and nothing was done in between, the last "
                f"({member.replica_id}): {error}. What is committed is kept; the same command goes on"
            )

    def _explain(self) -> None:
        """Count the deaths that no death of a node explains."""
        waiting, self._unexplained = self._unexplained, []
        for due, member, error in waiting:
            if self._nodes.is_gone(member.node):
                self._node_went(member, str(error))
            elif time.monotonic() < due:
                self._unexplained.append((due, member, error))
            else:
                self._count(member, error)

    def _look_at_nodes(self) -> None:
        self._nodes.look()
        for member in list(self.members):
            if self._nodes.is_gone(member.node):
                self._remove(member)
                self._node_went(member, "its node is gone")
            elif self._nodes.goes_away(member.node) and not member.draining:
                _log.warning("the node of replica %s goes away; it finishes what it can", member.replica_id)
                member.drain()
                self._vacant[member.number] = 0.0
            elif member.draining and member.idle:
                self._remove(member)
                self._node_went(member, "its node goes away")

    def _node_went(self, member: Member, reason: str) -> None:
        _log.warning("replica %s went with its node: %s", member.replica_id, reason)
        if not member.draining:
            self._vacant[member.number] = 0.0
        self._on_gone(member, reason, False)

    def _start_due(self) -> None:
        now = time.monotonic()
        if not any(at <= now for at in self._vacant.values()):
            return
        before, self._avoided = self._avoided, self._nodes.avoid(self.deaths.by_node(now))
        if self._avoided - before:  # what waits was asked for before, and would still go there
            for member in [member for member in self.members if not member.node]:
                self._remove(member)
                self._vacant[member.number] = now
        placement = plan_placement(self._config, self._avoided)
        for number in [number for number, at in self._vacant.items() if at <= now]:
            del self._vacant[number]
            self.members.append(start_member(self._name, number, self._config, placement, self._rung))

    def _taken(self) -> set[int]:
        """Places that are filled, or shall be."""
        return {member.number for member in self.members if not member.draining} | self._vacant.keys()

    def _refuse_to_stay_alone(self) -> None:
        now = time.monotonic()
        if self.ready():
            self._alone_since = now
        elif now - self._alone_since > self._config.start_timeout_seconds:
            raise none_in_time(self._name, self._config)  # their nodes may be gone for good

    def _remove(self, member: Member) -> None:
        self.members.remove(member)
        with suppress(Exception):  # it may be dead, and so may its node
            member.end()
