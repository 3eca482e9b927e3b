"""How many engines a pool has and should have, and for how long it has had too few. Pure: no Ray, no clock."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineCount:
    """Where a pool stands.

    Attributes:
        wanted: Engines that there should be: the recipe's `replicas`, less those that left because nothing was left for them to do.
        ready: Engines that take work.
        placed: Engines that have a node, and so hold what the recipe reserves there, ready or not.
        draining: Those of `placed` that are not among `wanted`, for their nodes go away.
        short_seconds: For how long fewer than `wanted` have been ready; 0 where all are.
        overdue: Engines that are not ready although the pool's `full_within_seconds` have passed; 0 until then.
    """

    wanted: int = 0
    ready: int = 0
    placed: int = 0
    draining: int = 0
    short_seconds: float = 0.0
    overdue: int = 0

    @property
    def without_node(self) -> int:
        """Engines of `wanted` that no node has taken. One may be ready before it is known where it is."""
        return self.wanted - max(self.placed - self.draining, self.ready)


class EngineCounter:
    """Counts the engines of one pool.

    Args:
        full_within_seconds: So long fewer than wanted may be ready before they are overdue.
    """

    def __init__(self, full_within_seconds: float) -> None:
        self._full_within_seconds = full_within_seconds
        self._short_since: float | None = None

    def count(self, wanted: int, ready: int, placed: int, now: float, *, draining: int = 0) -> EngineCount:
        """What is there at a time on a monotonic clock."""
        if ready >= wanted:
            self._short_since = None
            return EngineCount(wanted, ready, placed, draining)
        if self._short_since is None:
            self._short_since = now
        seconds = now - self._short_since
        overdue = wanted - ready if seconds >= self._full_within_seconds else 0
        return EngineCount(wanted, ready, placed, draining, seconds, overdue)
