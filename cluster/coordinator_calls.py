"""How a replica reaches the coordinator, and how what it raised arrives."""

from dataclasses import dataclass
from typing import Any, Protocol

from cluster.protocol import CommitAnswer, LeaseAnswer, ShardCommit
from generation.errors import PsiError
from generation.instances.plan import PlanRecord


class CoordinatorCalls(Protocol):
    """What a replica asks of the coordinator; see `cluster.coordinator.Coordinator`."""

    def lease(self, replica_id: str) -> LeaseAnswer:
        """What to do next."""
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

    def lease(self, replica_id: str) -> LeaseAnswer:
        """What to do next."""
        return self._call("lease", replica_id)

    def record(self, index: int) -> PlanRecord:
        """A plan record."""
        return self._call("record", index)

    def commit(self, replica_id: str, lease_id: str, commit: ShardCommit) -> CommitAnswer:
        """Make a shard's units visible."""
        return self._call("commit", replica_id, lease_id, commit)

    def forget(self, replica_id: str) -> None:
        """A replica is dead."""
        self._call("forget", replica_id)

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
