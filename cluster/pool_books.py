"""What one pool tells the books of its run, where it has some: what its processes use, and how many engines there are."""

from typing import Any

from cluster.energy_book import EnergyBook
from cluster.engine_book import EngineBook
from cluster.engine_count import EngineCount
from cluster.pool_member import Member

_COORDINATOR = "coordinator"


class PoolBooks:
    """One thread uses it.

    Args:
        pool: Name of the pool.
        energy: Where what its replicas use is booked, or None.
        engines: Where it is noted how many of them there are, or None.
    """

    def __init__(self, pool: str, energy: EnergyBook | None, engines: EngineBook | None) -> None:
        self._pool = pool
        self._energy = energy
        self._engines = engines

    def look(self, count: EngineCount) -> None:
        """Whatever is due. Waits for no replica, only for storage where something is to be written down."""
        if self._energy is not None:
            self._energy.look()
        if self._engines is not None:
            self._engines.note(self._pool, count)

    def wait(self, count: EngineCount) -> None:
        """The first engine is not ready yet, and nothing can be done without it."""
        if self._engines is not None:
            self._engines.wait(self._pool, count)

    def joined(self, member: Member) -> None:
        """A replica is ready."""
        if self._energy is not None and member.info is not None:
            self._energy.watch(member.replica_id, member.handle, pool=self._pool, loaded=member.info.loaded)

    def left(self, *members: Member) -> None:
        """Replicas are about to be stopped."""
        if self._energy is not None:
            self._energy.release(*(member.replica_id for member in members))

    def begin(self, coordinator: Any) -> None:
        """A coordinator has work for the pool."""
        if self._energy is not None:
            self._energy.watch(_COORDINATOR, coordinator, role="coordinator")

    def end(self) -> None:
        """It has no more."""
        if self._energy is not None:
            self._energy.release(_COORDINATOR)

    def close(self) -> None:
        """The pool has no engines any more, and wants none."""
        if self._engines is not None:
            self._engines.release(self._pool)
