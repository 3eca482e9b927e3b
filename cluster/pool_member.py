"""One replica of a pool as its driver sees it."""

import os
import time
from dataclasses import dataclass, field
from typing import Any

from cluster.replica import Replica, ReplicaInfo
from generation.engines.config import PoolConfig
from generation.errors import EngineDeadError

HANG_SECONDS = 600.0
"""An engine that has requests and makes no step for so long hangs; the first steps of a large model compile for minutes."""

_LOOK_SECONDS = 10.0
_CONCURRENCY = 16
"""Calls that a replica takes at once: one that generates, chunks of asks, looks at its counters."""


@dataclass(slots=True)
class Member:
    """A replica actor.

    Attributes:
        number: Its place in the pool; a replacement has the same.
        replica_id: Unique over all attempts.
        handle: The actor.
        starting: Reference to its `ready`, until that has been read.
        info: What `ready` said.
        generating: Reference to its `generate`, while it runs.
        chunks: Chunks of an ask that it works on.
        started_at: When it was created, on the monotonic clock.
    """

    number: int
    replica_id: str
    handle: Any
    starting: Any
    info: ReplicaInfo | None = None
    generating: Any = None
    chunks: int = 0
    started_at: float = field(default_factory=time.monotonic)
    _looking: Any = None
    _looked_at: float = 0.0
    _steps: int = -1
    _stepped_at: float = field(default_factory=time.monotonic)

    def watch(self) -> None:
        """It is about to get work: from now on it shall make steps."""
        self._stepped_at = time.monotonic()

    def trouble(self) -> str:
        """Why it should be replaced, or empty: it is dead, or made no step for `HANG_SECONDS` with requests unfinished. Never waits."""
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
        return f"no step for {HANG_SECONDS:.0f} s" if now - self._stepped_at > HANG_SECONDS else ""


def is_death(error: Exception) -> bool:
    """Whether an error says that the replica is gone, and not that it was asked for something wrong."""
    from ray.exceptions import RayActorError

    return isinstance(error, RayActorError | EngineDeadError)


def start_member(pool: str, number: int, config: PoolConfig) -> Member:
    """Create a replica actor; it boots by itself."""
    import ray

    threads = getattr(config.engine, "threads", None)
    variables = {"TOKENIZERS_PARALLELISM": "false", "USE_TF": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(threads)
    replica_id = f"{pool}-{number}-{os.urandom(4).hex()}"
    actor: Any = ray.remote(Replica)
    handle = actor.options(
        num_cpus=config.cpus,
        num_gpus=config.gpus,
        max_restarts=0,
        max_task_retries=0,
        max_concurrency=_CONCURRENCY,
        runtime_env={"env_vars": variables},
    ).remote(replica_id, config.engine, None if config.gpus else (number, config.replicas), config.gpus)
    return Member(number, replica_id, handle, handle.ready.remote())
