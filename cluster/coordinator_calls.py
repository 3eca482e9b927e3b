"""How a replica reaches the coordinator: calls that never wait, and how what it raised arrives."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from generation.errors import PsiError


class CoordinatorCalls(Protocol):
    """What a replica asks of the coordinator."""

    def send(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method of `cluster.coordinator.Coordinator`; cancelling the future forgets the call."""
        ...


@dataclass(frozen=True)
class RemoteCoordinator:
    """The coordinator actor."""

    handle: Any

    def send(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method; cancelling the future forgets the call."""
        import ray

        reference: Any = getattr(self.handle, method).remote(*arguments)
        future: Future[Any] = reference.future()

        def forget(done: Future[Any]) -> None:
            if done.cancelled():  # or Ray would go on to deliver it, once more for each time that it was made
                ray.cancel(reference)

        future.add_done_callback(forget)
        return future


def cause_of(error: Exception) -> Exception:
    """What the remote code raised, as it raised it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, PsiError) else error
