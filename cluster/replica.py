"""A replica: one engine in one Ray actor, asked by the driver or leasing units until it is told to leave.

A plain class; `ray.remote(Replica)` at the call site makes it a threaded actor.
"""

import itertools
import logging
import os
import platform
import time
from dataclasses import dataclass, replace
from typing import NoReturn

from cluster.coordinator_calls import CoordinatorCalls
from cluster.cores import claim_cores
from cluster.energy import ProcessMeter, Reading
from cluster.lease_loop import LeaseLoop, Place
from cluster.model_copy import fetch_model
from cluster.protocol import GenerateJob
from cluster.replica_process import die_together, exit_soon, in_actor, node_id, on_term
from cluster.unit_work import UnitWork
from generation.engines.base import EngineStats
from generation.engines.build import build_engine
from generation.engines.config import EngineConfig, replicas_per_gpu
from generation.errors import EngineDeadError, StorageError
from generation.flows import FlowCall, FlowResult
from generation.pump import Pump
from generation.rows import rows_to_batch

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
        gpus: GPUs that it has; a fraction of one that it shares. Without any, it binds itself to as many cores as the engine has threads.
        rung: How often an engine of its pool ran out of memory (`generation.engines.presets`).
        canary: Whether its engine keeps its own statistics too.
    """

    def __init__(
        self, replica_id: str, engine: EngineConfig, gpus: float = 0.0, rung: int = 0, canary: bool = False
    ) -> None:
        self._replica_id = replica_id
        self._began = time.monotonic()
        self._meter = ProcessMeter(children=True, gpu_share=gpus)
        self._started: tuple[float, Reading] | None = None
        self._in_actor = in_actor()
        if self._in_actor:
            die_together()
            on_term(self._end)
        threads = getattr(engine, "threads", None)
        if not gpus and threads is not None and self._in_actor:
            claim_cores(threads)
        self._cores = tuple(sorted(os.sched_getaffinity(0)))
        self._model_missing: StorageError | None = None
        try:
            fetch_model(engine)
        except (
            StorageError
        ) as error:  # whoever asks `ready` hears of it; of a constructor that fails, only that the actor died
            self._model_missing = error
        self._engine = build_engine(engine, replicas_per_gpu(gpus), rung, canary=canary)
        self._pump = Pump(self._engine)
        self._pump.start()
        rows_to_batch(
            []
        )  # pyarrow imports pandas with its first array: a third of a second that no step should wait for
        self._shards = itertools.count()
        self._loop: LeaseLoop | None = None
        self._drained = False
        self._has_generated = False

    def ready(self) -> ReplicaInfo:
        """Wait until the engine is built.

        Raises:
            EngineError: It cannot be built.
            StorageError: Its model cannot be copied.
        """
        if self._model_missing is not None:
            raise self._model_missing
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
        """Lease units, write and commit them, until the coordinator says leave, or `leave` or `drain` is called.

        Raises:
            EngineDeadError: The engine died; so does this actor, a moment later.
            StorageError: Shards cannot be written, or not be committed.
            RunLockedError: Another driver has taken the run over.
            GaveUpError: The coordinator could not be reached for long, and nothing was left to do.
        """
        work = UnitWork(job, self._shard_name)
        node = node_id() if self._in_actor else ""
        place = Place(self._replica_id, node, self._engine.max_in_flight // 4, job.drain_seconds)
        before = self._pump.spent()
        if not self._has_generated:
            before = replace(before, boot_seconds=0.0)  # its start is booked with what it first generates
        self._has_generated = True
        loop = self._loop = LeaseLoop(place, work, self._pump, coordinator, before)
        if self._drained:
            loop.leave()
        self._pump.attach(work)
        try:
            loop.run()
        except EngineDeadError as error:
            self._die(error)
        finally:
            self._loop = None
            self._pump.detach(work)

    def leave(self) -> None:
        """End `generate` at once; what is not committed is dropped."""
        loop = self._loop
        if loop is not None:
            loop.leave()

    def drain(self) -> None:
        """Its node goes away: lease no more, finish and commit what is possible in `drain_seconds`, give the rest back.

        Ends `generate` for good; returns at once.
        """
        self._drained = True
        loop = self._loop
        if loop is not None:
            loop.drain()

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

    def _end(self) -> None:
        """Whoever sent SIGTERM sends SIGKILL soon: drain, then go."""
        self.drain()
        while self._loop is not None:
            time.sleep(0.1)
        exit_soon(0)

    def _shard_name(self) -> str:
        return f"shard-{self._replica_id}-{next(self._shards):06d}.arrow"

    def _die(self, error: EngineDeadError) -> NoReturn:
        """Take this actor down with its engine, so that nothing of it stays on the GPU."""
        _log.error("replica %s: the engine is dead: %s", self._replica_id, error)
        if self._in_actor:
            exit_soon(1)
        raise error
