"""How a replica reaches the coordinator, and how what it raised arrives."""

from dataclasses import dataclass
from typing import Any, Protocol

from cluster.protocol import Beat, BeatAnswer, CommitAnswer, LeaseAnswer, ShardCommit
from generation.errors import PsiError
from generation.instances.plan import PlanRecord


class CoordinatorCalls(Protocol):
    """What a replica asks of the coordinator; see `cluster.coordinator.Coordinator`."""

    def lease(self, replica_id: str, beat: Beat) -> LeaseAnswer:
        """What to do next."""
        ...

    def beat(self, replica_id: str, beat: Beat) -> BeatAnswer:
        """Say that it lives; hear what changed."""
        ...

    def announce(self, replica_id: str, unit: str, first: int, end: int) -> None:
        """It is about to run flows [first, end) of a unit that is leased with care."""
        ...

    def release(self, replica_id: str, units: tuple[str, ...], reason: str, blame: bool) -> None:
        """Give units back."""
        ...

    def record(self, index: int) -> PlanRecord:
        """A plan record."""
        ...

    def commit(self, replica_id: str, lease_id: str, commit: ShardCommit) -> CommitAnswer:
        """Make a shard's units visible."""
        ...


@dataclass(frozen=True)
class RemoteCoordinator:
    """The coordinator actor, called as if it were here."""

    handle: Any

    def lease(self, replica_id: str, beat: Beat) -> LeaseAnswer:
        """What to do next."""
        return self._call("lease", replica_id, beat)

    def beat(self, replica_id: str, beat: Beat) -> BeatAnswer:
        """Say that it lives; hear what changed."""
        return self._call("beat", replica_id, beat)

    def announce(self, replica_id: str, unit: str, first: int, end: int) -> None:
        """It is about to run flows [first, end) of a unit that is leased with care."""
        self._call("announce", replica_id, unit, first, end)

    def release(self, replica_id: str, units: tuple[str, ...], reason: str, blame: bool) -> None:
        """Give units back."""
        self._call("release", replica_id, units, reason, blame)

    def record(self, index: int) -> PlanRecord:
        """A plan record."""
        return self._call("record", index)

    def commit(self, replica_id: str, lease_id: str, commit: ShardCommit) -> CommitAnswer:
        """Make a shard's units visible."""
        return self._call("commit", replica_id, lease_id, commit)

    def forget(self, replica_id: str, reason: str, blame: bool) -> None:
        """A replica is dead; without blame, its units lose no attempt."""
        self._call("forget", replica_id, reason, blame)

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray
        from ray.exceptions import RayTaskError

        try:
            return ray.get(getattr(self.handle, method).remote(*arguments))
        except RayTaskError as error:
            raise cause_of(error) from None


def cause_of(error: Exception) -> Exception:
    """What the remote code raised, as it raised it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, PsiError) else error
