"""Units of the miniature and their way through a pump, as a replica takes them; and an engine that remembers what it was asked."""

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from cluster.lease_loop import LeaseLoop, Place
from cluster.protocol import BeatAnswer, CommitAnswer, GenerateJob, Lease, LeaseAnswer, ShardCommit
from cluster.recipe import Recipe
from cluster.unit_work import UnitWork
from generation.arms import ArmSpec
from generation.engines.base import Completion, Engine, EngineStats, Finished, Prepared, Request
from generation.instances.bundles import make_bundles, make_cells
from generation.instances.flow import InstanceContext, without_seeds
from generation.instances.plan import PlanRecord, even_parts
from generation.principles.model import Principle
from generation.prompts.prompt_set import PromptSet
from generation.pump import Pump
from generation.task import Task
from recipes.miniature.world import TASKS


class Clock:
    """Seconds of a block, and those that all threads of the process computed in it."""

    seconds: float
    cpu_seconds: float

    def __enter__(self) -> "Clock":
        """Start."""
        self._started = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self._started[0]
        self.cpu_seconds = time.process_time() - self._started[1]


class Recorder:
    """An engine that remembers what another one was asked and answered."""

    def __init__(self, engine: Engine) -> None:
        self.max_in_flight = engine.max_in_flight
        self._engine = engine
        self._asked: dict[int, Prepared] = {}
        self._answers: dict[int, Completion] = {}

    def take(self) -> list[tuple[Prepared, Completion]]:
        """Requests in the order in which they were made, with their completions, since the last call."""
        taken = [(prepared, self._answers[number]) for number, prepared in self._asked.items()]
        self._asked, self._answers = {}, {}
        return taken

    def start(self) -> None:
        """Build the engine."""
        self._engine.start()

    def prepare(self, request: Request) -> Prepared:
        """Encode one request."""
        return self._engine.prepare(request)

    def add(self, request_id: int, prepared: Prepared) -> None:
        """Queue a request."""
        self._asked[request_id] = prepared
        self._engine.add(request_id, prepared)

    def step(self) -> list[Finished]:
        """Advance."""
        return self._engine.step()

    def decode(self, finished: Sequence[Finished]) -> list[Completion]:
        """Turn finished requests into completions."""
        completions = self._engine.decode(finished)
        self._answers.update(zip((one.request_id for one in finished), completions, strict=True))
        return completions

    def abort(self, request_ids: Sequence[int]) -> None:
        """Forget requests."""
        self._engine.abort(request_ids)

    def stats(self) -> EngineStats:
        """Counters so far."""
        return self._engine.stats()

    def close(self) -> None:
        """Free everything."""
        self._engine.close()


class Desk:
    """A coordinator that leases each of its records once, whole, and takes every commit."""

    def __init__(self, records: Sequence[PlanRecord]) -> None:
        self._records = records
        self._leases = iter([Lease(str(record.index), tuple(record.units()), 600.0) for record in records])

    def send(self, method: str, *arguments: Any) -> Future[Any]:
        """Answer at once."""
        answer: Future[Any] = Future()
        answer.set_result(getattr(self, f"_{method}")(*arguments))
        return answer

    def _lease(self, *_: object) -> LeaseAnswer:
        lease = next(self._leases, None)
        return LeaseAnswer(lease, leave=lease is None)

    def _beat(self, *_: object) -> BeatAnswer:
        return BeatAnswer()

    def _record(self, index: int) -> PlanRecord:
        return self._records[index]

    def _commit(self, replica_id: str, lease_id: str, commit: ShardCommit) -> CommitAnswer:
        return CommitAnswer(tuple(rows.unit for rows in commit.units), ())


class Miniature:
    """Units of the miniature, and how a turn of them is run as a replica runs it."""

    def __init__(self, recipe: Recipe, tasks: Sequence[Task], prompts: PromptSet, arm: ArmSpec) -> None:
        self._kinds = [
            (task, bundle, make_cells(bundle, task, prompts, recipe.generation))
            for task in tasks
            for bundle in make_bundles(task, _principles(task), prompts, recipe.generation, arm)
        ]
        self._context = InstanceContext(
            "benchmark", {task.name: without_seeds(task) for task in tasks}, prompts, recipe.generation, "model"
        )
        self._flows_per_unit = recipe.generation.flows_per_unit
        self._shards = itertools.count()

    def run(self, pump: Pump, max_in_flight: int, folder: str, units: int) -> Clock:
        """Generate and commit so many units."""
        desk = Desk(self._records(units))
        work = UnitWork(GenerateJob(folder, "benchmark", self._context), self._shard_name)
        place = Place("r", "", max_in_flight // 4, drain_seconds=0.0)
        with Clock() as clock:
            pump.attach(work)
            LeaseLoop(place, work, pump, desk).run()
        pump.detach(work)
        return clock

    def _records(self, units: int) -> list[PlanRecord]:
        """Units shared evenly between the bundles."""
        shares, flows = even_parts(units, len(self._kinds)), self._flows_per_unit
        return [
            PlanRecord(index, task.name, 0, bundle, cells, share, flows, even_parts(share * flows, len(cells)))
            for index, ((task, bundle, cells), share) in enumerate(zip(self._kinds, shares, strict=True))
        ]

    def _shard_name(self) -> str:
        return f"shard-r-{next(self._shards):06d}.arrow"


def _principles(task: Task) -> list[Principle]:
    """What the large model finds: the rule of a task, and a range of lengths."""
    rule, lengths = "; ".join(TASKS[task.name]), "len 4-6"
    return [
        Principle(f"{task.name}-rule", task.name, "task", "solve", rule, status="active"),
        Principle(f"{task.name}-lengths", task.name, "instance", "generate", lengths, status="active"),
    ]
