"""How the driver reaches the coordinator: an actor that outlives its crashes, called as if it were here."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

from cluster.coordinator import Coordinator
from generation.errors import PsiError, StorageError
from generation.storage import Store

MAX_CALLS = 10_000
"""Calls that the actor takes at once; a commit waits inside it until it is durable."""


class CoordinatorLink(Protocol):
    """What the driver's loop needs."""

    @property
    def handle(self) -> Any:
        """What replicas are given to reach the same coordinator."""
        ...

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of `Coordinator` and wait for its answer."""
        ...


class ActorLink:
    """A coordinator that is an actor."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method and wait.

        Raises:
            PsiError: What the coordinator raised.
            StorageError: The coordinator cannot start.
        """
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        try:
            return ray.get(getattr(self.handle, method).remote(*arguments))
        except RayTaskError as error:
            if isinstance(error.cause, PsiError):
                raise error.cause from None
            raise
        except RayActorError as error:
            raise StorageError(f"the coordinator cannot start: {error}") from error


@contextmanager
def coordinator_actor(store: Store, lease_seconds: float) -> Generator[ActorLink]:
    """A coordinator on this node while the block runs.

    Ray starts it again wherever it fails, and repeats the calls that were lost with it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "max_concurrency": MAX_CALLS}
    actor: Any = ray.remote(Coordinator)
    handle = actor.options(**options, scheduling_strategy=here).remote(store.uri, lease_seconds)
    try:
        yield ActorLink(handle)
    finally:
        ray.kill(handle)
