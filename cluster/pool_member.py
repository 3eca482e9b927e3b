"""One replica of a pool as its driver sees it."""

import os
import time
from dataclasses import dataclass, field
from typing import Any

from cluster.coordinator_calls import cause_of
from cluster.placement import Placement, end_actor, start_actor
from cluster.replica import Replica, ReplicaInfo
from generation.engines.config import PoolConfig
from generation.errors import EngineDeadError, EngineMemoryError

HANG_SECONDS = 600.0
"""An engine that has requests and makes no step for so long hangs; the first steps of a large model compile for minutes."""
SILENT_SECONDS = 120.0
"""A replica that answers nothing for so long is gone, whatever Ray says: calls over a broken network wait for minutes."""

UNEXPLAINED_SECONDS, UNREACHABLE_SECONDS = 3.0, 30.0
"""How much later than its actors Ray says that a node is dead: at most so long where they died, and where calls do not reach them any more."""

_LOOK_SECONDS = 10.0
_CONCURRENCY = 16
"""Calls that a replica takes at once: one that generates, chunks of asks, looks at its counters."""
_NODE_MEMORY_SIGN = "running low on memory"
"""What Ray says when it killed a process before its node ran out of memory."""


@dataclass(slots=True, eq=False)
class Member:
    """A replica actor.

    Attributes:
        number: Its place in the pool; a replacement has the same.
        replica_id: Unique over all attempts.
        rung: With how much less than its settings it was started, after engines had run out of memory.
        handle: The actor.
        group: Its placement group, or None.
        starting: Reference to its `ready`.
        node: Ray's id of its node, once known.
        info: What `ready` said, once it has.
        generating: Reference to its `generate`, while it runs.
        chunks: Chunks of an ask that it works on.
        draining: It was told to finish and leave, since its node goes away.
        started_at: When it was created, on the monotonic clock.
    """

    number: int
    replica_id: str
    rung: int
    handle: Any
    group: Any
    starting: Any
    node: str = ""
    info: ReplicaInfo | None = None
    generating: Any = None
    chunks: int = 0
    draining: bool = False
    started_at: float = field(default_factory=time.monotonic)
    _locating: Any = None
    _looking: Any = None
    _looked_at: float = 0.0
    _steps: int = -1
    _stepped_at: float = field(default_factory=time.monotonic)

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do."""
        return self.generating is None and not self.chunks

    def watch(self) -> None:
        """It is about to get work: from now on it shall make steps."""
        self._stepped_at = time.monotonic()

    def drain(self) -> None:
        """Have it finish and leave."""
        self.draining = True
        self.handle.drain.remote()

    def locate(self) -> None:
        """Learn its node as soon as its process runs. Never waits."""
        import ray
        from ray.exceptions import RayError

        if self.node:
            return
        if self._locating is None:
            self._locating = self.handle.__ray_call__.remote(_node_of)
        elif ray.wait([self._locating], timeout=0)[0]:
            try:
                self.node = ray.get(self._locating)
            except RayError:
                return  # it is dead, which its other calls say

    def trouble(self) -> str:
        """Why it should be replaced, or empty: it is dead, silent, or made no step with requests unfinished. Never waits."""
        import ray
        from ray.exceptions import RayActorError

        now = time.monotonic()
        if self._looking is None and now - self._looked_at >= _LOOK_SECONDS:
            self._looking, self._looked_at = self.handle.stats.remote(), now
        if self._looking is not None and ray.wait([self._looking], timeout=0)[0]:
            try:
                stats: Any = ray.get(self._looking)
            except RayActorError as error:
                return str(error)
            self._looking = None
            if stats.steps != self._steps or not stats.unfinished:
                self._steps, self._stepped_at = stats.steps, now
        if self._looking is not None and now - self._looked_at > SILENT_SECONDS:
            return f"answers nothing for {SILENT_SECONDS:.0f} s"
        return f"no step for {HANG_SECONDS:.0f} s" if now - self._stepped_at > HANG_SECONDS else ""

    def end(self) -> None:
        """Kill it, with all of its processes."""
        end_actor(self.handle, self.group)


def is_death(error: Exception) -> bool:
    """Whether an error says that the replica is gone, and not that it was asked for something wrong."""
    from ray.exceptions import RayActorError

    return isinstance(error, RayActorError | EngineDeadError)


def is_unexplained(error: Exception) -> bool:
    """Whether only Ray speaks of the death, which may then be that of the node."""
    from ray.exceptions import RayActorError

    return isinstance(error, RayActorError)


def explained_within(error: Exception) -> float:
    """Seconds in which the death of the node may still explain such a death."""
    from ray.exceptions import ActorUnavailableError

    return UNREACHABLE_SECONDS if isinstance(error, ActorUnavailableError) else UNEXPLAINED_SECONDS


def is_memory(error: Exception) -> bool:
    """Whether it died for want of memory."""
    return isinstance(error, EngineMemoryError) or (is_unexplained(error) and _NODE_MEMORY_SIGN in str(error))


def start_member(pool: str, number: int, config: PoolConfig, placement: Placement, rung: int) -> Member:
    """Create a replica actor; it boots by itself."""
    threads = getattr(config.engine, "threads", None)
    variables = {"TOKENIZERS_PARALLELISM": "false", "USE_TF": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(threads)
    replica_id = f"{pool}-{number}-{os.urandom(4).hex()}"
    options = {
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": _CONCURRENCY,
        "runtime_env": {"env_vars": variables},
    }
    canary = number == 0
    handle, group = start_actor(Replica, placement, options, (replica_id, config.engine, config.gpus, rung, canary))
    member = Member(number, replica_id, rung, handle, group, handle.ready.remote())
    member.locate()
    return member


def _node_of(_: Any) -> str:
    import ray

    return ray.get_runtime_context().get_node_id()


def error_of(reference: Any) -> tuple[Any, Exception | None]:
    """What a finished call of a replica gave, or what it raised, as it raised it."""
    import ray

    try:
        return ray.get(reference), None
    except Exception as error:  # noqa: BLE001 - whoever asks decides what each error means
        return None, cause_of(error)
