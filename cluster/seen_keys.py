"""Keys of inputs that curation kept, on their way to the replicas. Advisory: lost with the coordinator."""

from collections.abc import Sequence

_PER_LEASE = 20_000
_KEPT = 100_000


class SeenKeys:
    """The last keys, and how many of all each replica has been told. One that joins late hears only of the last ones."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._num_dropped = 0
        self._told: dict[str, int] = {}

    def add(self, keys: Sequence[str]) -> None:
        """More were kept."""
        self._keys.extend(keys)
        if len(self._keys) > 2 * _KEPT:
            self._num_dropped += len(self._keys) - _KEPT
            del self._keys[:-_KEPT]

    def tell(self, replica_id: str) -> tuple[str, ...]:
        """Those that a replica has not been told, as many as go with one lease."""
        if not self._keys:
            return ()
        start = max(0, self._told.get(replica_id, 0) - self._num_dropped)
        news = tuple(self._keys[start : start + _PER_LEASE])
        self._told[replica_id] = self._num_dropped + start + len(news)
        return news

    def forget(self, replica_id: str) -> None:
        """It is gone."""
        self._told.pop(replica_id, None)
