"""When a pool has lost too many replicas, and which nodes lost them. Pure: no Ray, no clock."""

from collections import Counter

WINDOW_SECONDS = 3600.0
NODE_DEATHS = 3
"""A node on which so many engines died within the window is avoided."""


class Deaths:
    """Deaths of the replicas of one pool that were their engines' own, or nobody knows whose.

    Args:
        limit: So many may come within the window with nothing done in between.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._recent: list[tuple[float, str]] = []
        self._fruitless: list[float] = []

    def add(self, node: str, now: float) -> None:
        """One more, on a node; empty: on an unknown one."""
        self.blame_node(node, now)
        self._fruitless.append(now)

    def blame_node(self, node: str, now: float) -> None:
        """One that stops nothing, but speaks against its node."""
        self._forget(now)
        self._recent.append((now, node))

    def progress(self) -> None:
        """Something was done: those before did not stop the work."""
        self._fruitless.clear()

    @property
    def fruitless(self) -> int:
        """Deaths since something was done."""
        return len(self._fruitless)

    @property
    def too_many(self) -> bool:
        """Whether to give up."""
        return self.fruitless > self._limit

    def by_node(self, now: float) -> Counter[str]:
        """Deaths within the window."""
        self._forget(now)
        return Counter(node for _, node in self._recent if node)

    def _forget(self, now: float) -> None:
        oldest = now - WINDOW_SECONDS
        self._recent = [death for death in self._recent if death[0] > oldest]
        self._fruitless = [at for at in self._fruitless if at > oldest]
