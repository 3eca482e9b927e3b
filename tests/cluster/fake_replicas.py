"""Stand-ins for what surrounds the driver's loop: a coordinator without Ray, and replicas that write real shards without an engine."""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from cluster.coordinator import Coordinator
from cluster.coordinator_link import CoordinatorLink
from cluster.engine_count import EngineCount
from cluster.generate import ArmRun
from cluster.protocol import Beat, GenerateJob, Lease
from cluster.recipe import Recipe
from cluster.task_fold import TaskWork
from generation.config import TaskConfig
from generation.instances.flow import InstanceContext
from generation.instances.plan import Bundle, Cell, FlowPlan, PlanRecord, parse_unit_id, unit_flows
from generation.manifest_state import Shard
from generation.prompts.prompt_set import load_prompt_set
from generation.rows import ROW_SCHEMA, Row, row_id, rows_to_batch
from generation.spent import Spent
from generation.storage import Store, digest
from generation.task import Task

Write = Callable[[FlowPlan, PlanRecord], Row]


class LocalLink:
    """A coordinator in a thread of this process."""

    def __init__(self, store: Store, lease_seconds: float) -> None:
        self._coordinator = Coordinator(store.uri, lease_seconds)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.handle = self

    def call(self, method: str, *arguments):
        return asyncio.run_coroutine_threadsafe(getattr(self._coordinator, method)(*arguments), self._loop).result()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def local_coordinator(store: Store, lease_seconds: float) -> Iterator[LocalLink]:
    link = LocalLink(store, lease_seconds)
    try:
        yield link
    finally:
        link.stop()


class FakePool:
    """Replicas as threads. With `faults`, they die with a lease in hand, commit a unit under two files, and repeat commits."""

    def __init__(
        self,
        write: Write,
        replicas: int = 2,
        faults: float = 0.0,
        ticks: int | None = None,
        reach: Callable[[Any], CoordinatorLink] = lambda link: link,
        spent: Spent | None = None,
    ) -> None:
        self._write = write
        self._replicas = replicas
        self._faults = faults
        self._ticks = ticks
        self._reach = reach
        self._spent = spent or Spent()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._rng = Random(1)
        self.dead: list[str] = []
        self.started = 0

    def start_generation(self, job: GenerateJob, coordinator: Any) -> None:
        self._job = job
        self._coordinator = self._reach(coordinator)
        for _ in range(self._replicas):
            self._start_one()

    def count(self) -> EngineCount:
        return EngineCount(self._replicas, self._replicas, self._replicas)

    def tend(self, coordinator: Any) -> None:
        if self._ticks is not None:
            self._ticks -= 1
            if self._ticks < 0:
                raise KeyboardInterrupt
        while self.dead:
            self._coordinator.call("forget", self.dead.pop(), "killed", True)
            self._start_one()

    def recall(self, replicas: int) -> None:
        here = sum(thread.is_alive() for thread in self._threads)
        if self._threads and 2 * here <= replicas:
            for _ in range(self._replicas - here):
                self._start_one()

    def stop_generation(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _start_one(self) -> None:
        self.started += 1
        name = f"{digest(str(time.monotonic_ns()))[:6]}-{self.started}"
        self._threads.append(threading.Thread(target=self._replica, args=(name, Random(self._rng.random()))))
        self._threads[-1].start()

    def _replica(self, name: str, rng: Random) -> None:
        shards = 0
        while not self._stop.is_set():
            answer = self._coordinator.call("lease", name, Beat(spent=self._spent))
            if answer.leave:
                return
            if answer.lease is None:
                self._stop.wait(0.02)
                continue
            if rng.random() < self._faults:
                self.dead.append(name)
                return
            for _ in range(2 if rng.random() < self._faults else 1):
                shards += 1
                commit = self._shard(answer.lease, f"rows/round-0/shard-{name}-{shards:06d}.arrow")
                for _ in range(2 if rng.random() < self._faults else 1):
                    self._coordinator.call("commit", name, answer.lease.lease_id, commit)

    def _shard(self, lease: Lease, file: str) -> Shard:
        rows: list[Row] = []
        places: list[tuple[str, int, int]] = []
        for unit in lease.units:
            index, number = parse_unit_id(unit)
            record = self._coordinator.call("record", index)
            flows = [self._write(plan, record) for plan in unit_flows(record, number)]
            places.append((unit, len(rows), len(rows) + len(flows)))
            rows += flows
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, ROW_SCHEMA) as writer:
            writer.write_batch(rows_to_batch(rows))
        content = sink.getvalue().to_pybytes()
        Store(self._job.run).write_new(file, content)
        accepted = sum(row.status == "instance" for row in rows)
        rejected = {f"{rows[0].task}/parse/no input tag": len(rows) - accepted}
        tokens = {"draft": {"requests": len(rows), "output_tokens": 10 * len(rows)}}
        sha256 = hashlib.sha256(content).hexdigest()
        return Shard(file, sha256, len(content), tuple(places), {rows[0].task: accepted}, rejected, tokens)


def write_some(accept: float) -> Write:
    """Writes a row whose text differs at every attempt; so large a share of them are instances."""

    def write(plan: FlowPlan, record: PlanRecord) -> Row:
        text = digest(plan.unit, str(plan.index), str(time.monotonic_ns()))[:12]
        base = (row_id("test", plan.unit, plan.index), plan.unit, plan.index, record.task)
        if Random(f"{plan.unit} {plan.index}").random() >= accept:
            return Row(*base, "rejection", "parse", "no input tag", raw=text)
        return Row(*base, "instance", input=text, answer="yes", rationale="because", bundle=record.bundle.bundle_id)

    return write


def arm_run(folder: Path, tasks: str = "a", **sections) -> ArmRun:
    generation = {"accepted_rows": 60, "flows_per_unit": 8, **sections.get("generation", {})}
    configs = [
        TaskConfig.model_validate({"name": t, "description": "d", "answer": {"kind": "exact"}, "seeds": "x"})
        for t in tasks
    ]
    recipe = Recipe.model_validate(
        {
            "run": {"name": "test", "output": str(folder), "scratch": str(folder)},
            "tasks": [config.model_dump() for config in configs],
            "pools": {"small": {"engine": {"kind": "scripted"}, "replicas": 2, "gpus": 1}},
            "generation": generation,
            "limits": sections.get("limits", {}),
        }
    )
    kinds = tuple((Bundle(f"b{i}", (), "draft", "answer"), (Cell(f"c{i}", ""),)) for i in range(3))
    members = tuple(Task(config, ()) for config in configs)
    prompts = load_prompt_set("chat", folder)
    return ArmRun(
        arm="psi",
        store=Store(str(folder)),
        recipe=recipe,
        pool=recipe.pools.small,
        work=tuple(TaskWork(task, kinds, ()) for task in members),
        context=InstanceContext("test", {task.name: task for task in members}, prompts, recipe.generation, "model"),
    )
