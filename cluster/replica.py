"""A replica: one engine in one Ray actor, asked by the driver or leasing units until it is told to leave.

A plain class; `ray.remote(Replica)` at the call site makes it a threaded actor.
"""

import itertools
import logging
import multiprocessing
import os
import platform
import threading
import time
from dataclasses import dataclass
from typing import NoReturn

from cluster.coordinator_calls import CoordinatorCalls
from cluster.energy import ProcessMeter, Reading
from cluster.protocol import Beat, GenerateJob
from cluster.unit_work import UnitWork
from generation.engines.base import EngineStats
from generation.engines.build import build_engine
from generation.engines.config import EngineConfig
from generation.errors import EngineDeadError
from generation.flows import FlowCall, FlowResult
from generation.pump import Pump

_TICK_SECONDS = 0.5
_EXIT_SECONDS = 5.0
"""How long a dead engine's actor lives on, so that its last answer can name the reason."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """A replica that is ready.

    Attributes:
        replica_id: Its name.
        node: Host name.
        pid: Process id.
        cores: CPU cores that it is bound to.
        max_in_flight: Requests that keep its engine busy.
        start_seconds: How long its engine took to start.
        loaded: What it had used by then.
    """

    replica_id: str
    node: str
    pid: int
    cores: tuple[int, ...]
    max_in_flight: int
    start_seconds: float
    loaded: Reading


class Replica:
    """Owns an engine, which starts at once.

    Args:
        replica_id: Unique over all replicas of all drivers of a run: shards are named after it.
        engine: The engine's section of the recipe, with absolute paths.
        place: (number, count) among the replicas of a CPU pool, to bind each to cores of its own; None: bind to nothing.
        gpus: GPUs that it has; a fraction of one that it shares.
    """

    def __init__(
        self, replica_id: str, engine: EngineConfig, place: tuple[int, int] | None = None, gpus: float = 0.0
    ) -> None:
        self._replica_id = replica_id
        self._began = time.monotonic()
        self._meter = ProcessMeter(children=True, gpu_share=gpus)
        self._started: tuple[float, Reading] | None = None
        threads = getattr(engine, "threads", None)
        if place is not None and threads is not None:
            bind_cores(place, threads)
        self._cores = tuple(sorted(os.sched_getaffinity(0)))
        self._engine = build_engine(engine)
        self._pump = Pump(self._engine)
        self._pump.start()
        self._shards = itertools.count()
        self._leave = threading.Event()
        self._work: UnitWork | None = None

    def ready(self) -> ReplicaInfo:
        """Wait until the engine is built.

        Raises:
            EngineError: It cannot be built.
        """
        self._pump.wait_ready()
        if self._started is None:
            self._started = time.monotonic() - self._began, self._meter.read()
        return ReplicaInfo(
            self._replica_id,
            platform.node(),
            os.getpid(),
            self._cores,
            self._engine.max_in_flight,
            *self._started,
        )

    def ask(self, calls: list[FlowCall], token_budget: int | None = None) -> list[FlowResult]:
        """Run flows to their ends; results come in the order of the calls.

        Raises:
            EngineDeadError: The engine died; so does this actor, a moment later.
        """
        try:
            return self._pump.ask(calls, token_budget)
        except EngineDeadError as error:
            self._die(error)

    def generate(self, job: GenerateJob, coordinator: CoordinatorCalls) -> None:
        """Lease units, write and commit them, until the coordinator says leave or `leave` is called.

        Raises:
            EngineDeadError: The engine died; so does this actor, a moment later.
            StorageError: A shard cannot be written or committed.
        """
        self._leave.clear()
        work = UnitWork(job, self._replica_id, coordinator, self._shard_name)
        self._work = work
        self._pump.attach(work)
        try:
            self._follow(work, coordinator)
        except EngineDeadError as error:
            self._die(error)
        finally:
            self._work = None
            self._pump.detach(work)

    def leave(self) -> None:
        """End `generate` at once; what is not committed is dropped."""
        self._leave.set()
        work = self._work
        if work is not None:
            work.changed.set()

    def stats(self) -> EngineStats:
        """The engine's counters."""
        return self._pump.stats()

    def reading(self) -> Reading:
        """What this process, with its engine's, has used so far, and for which tokens."""
        stats = self._pump.stats()
        return self._meter.read(stats.by_stage, stats.unfinished)

    def stop(self) -> None:
        """Close the engine."""
        self.leave()
        self._pump.stop()

    def _follow(self, work: UnitWork, coordinator: CoordinatorCalls) -> None:
        """Keep a little more unstarted work than the engine needs until the next lease comes."""
        low = self._engine.max_in_flight // 4
        ask_at, leaving = 0.0, False
        while not self._leave.is_set():
            if work.error is not None:
                raise work.error
            if leaving and work.settled:
                return
            now = time.monotonic()
            if not leaving and work.unstarted <= low and now >= ask_at:
                answer = coordinator.lease(self._replica_id, Beat(steps=self._pump.stats().steps))
                if answer.lease is not None:
                    work.add(answer.lease, low)
                    self._pump.wake()
                    continue
                leaving, ask_at = answer.leave, now + answer.wait_seconds
                work.commit_at_once()
            self._pump.write(work, work.flush)
            pause = ask_at - now if not leaving and work.unstarted <= low else _TICK_SECONDS
            work.changed.wait(min(max(pause, 0.0), _TICK_SECONDS))
            work.changed.clear()

    def _shard_name(self) -> str:
        return f"shard-{self._replica_id}-{next(self._shards):06d}.arrow"

    def _die(self, error: EngineDeadError) -> NoReturn:
        """Take this actor down with its engine, so that nothing of it stays on the GPU."""
        _log.error("replica %s: the engine is dead: %s", self._replica_id, error)
        if _in_actor():
            for child in multiprocessing.active_children():
                child.kill()
            threading.Timer(_EXIT_SECONDS, os._exit, (1,)).start()
        raise error


def bind_cores(place: tuple[int, int], threads: int) -> bool:
    """Bind this thread, and those that it starts, to `threads` cores that no other replica of the pool has.

    Returns:
        False where this machine has too few cores for the whole pool: then nothing is bound.
    """
    number, count = place
    cores = sorted(os.sched_getaffinity(0))
    if count * threads > len(cores):
        return False
    os.sched_setaffinity(0, cores[number * threads : (number + 1) * threads])
    return True


def _in_actor() -> bool:
    import ray

    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None
