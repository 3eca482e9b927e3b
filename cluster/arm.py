"""One arm of a run: what it is to generate, and all that has been curated of it so far."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from cluster.leaving import Leaving
from cluster.protocol import PrefixAnswer
from cluster.recipe import Recipe
from cluster.task_fold import TaskFold, TaskWork
from generation.curation.counts import StageCounts
from generation.dataset import (
    DatasetSummary,
    Oracle,
    TaskRows,
    Written,
    sealed_targets,
    unwatched,
    write_dataset,
)
from generation.engines.config import HttpEngine, PoolConfig
from generation.errors import RecipeError
from generation.instances.flow import InstanceContext
from generation.instances.plan_log import read_records
from generation.manifest import replay
from generation.storage import Store
from generation.sweep import Swept, sweep_rows
from generation.visible import PlanPrefix, ShardReader

_PAGE_UNITS = 1024
"""Units whose places are in memory at once while storage is folded."""


@dataclass(frozen=True)
class ArmRun:
    """What one arm is to generate.

    Attributes:
        arm: Its name.
        store: The arm's run folder.
        recipe: The resolved recipe: sections generation, curation, limits and cluster are used.
        pool: The pool whose model writes.
        work: Its tasks.
        context: For the instance flows.
        provenance: What the dataset's rows come from (`write_dataset`).
        oracle: True answers, to measure labels with.
        spent_seconds: Wall time that counts against the recipe's limit already: other stages and arms, all restarts.
        spent_gpu_hours: The same of GPU time.
        confirm: Raises where another driver has taken the run over.
        on_file: Is told of each file of the dataset that is written.
        leaving: Whether the driver was asked to leave.
    """

    arm: str
    store: Store
    recipe: Recipe
    pool: PoolConfig
    work: tuple[TaskWork, ...]
    context: InstanceContext
    provenance: Mapping[str, Any] = field(default_factory=dict)
    oracle: Oracle | None = None
    spent_seconds: float = 0.0
    spent_gpu_hours: float = 0.0
    confirm: Callable[[], None] = lambda: None
    on_file: Written = unwatched
    leaving: Leaving = field(default_factory=Leaving)


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What an arm ended with.

    Attributes:
        dataset: The sealed dataset.
        accepted: Rows kept by curation, by task: exactly the target.
        overshoot: Rows beyond the target that curation would have kept, by task.
        stages: By task, rows in and out of each stage of curation.
        dropped: `stage: reason` to rows, over all tasks.
        tokens: Stage to `requests`, `prompt_tokens`, `cached_tokens`, `output_tokens`, over all restarts.
        seconds: Wall time of generation, over all restarts.
        given_up: Units given up, and why.
        swept: Shards removed that were not visible.
    """

    dataset: DatasetSummary
    accepted: dict[str, int]
    overshoot: dict[str, int]
    stages: dict[str, StageCounts]
    dropped: dict[str, int]
    tokens: dict[str, dict[str, int]]
    seconds: float
    given_up: dict[str, str]
    swept: Swept


class ArmFold:
    """The folds of all tasks of an arm.

    Raises:
        RecipeError: The plan on storage has a task that the recipe lacks.
    """

    def __init__(self, run: ArmRun) -> None:
        self._run = run
        self.reader = ShardReader(run.store)
        generation, curation = run.recipe.generation, run.recipe.curation
        self.tasks = {
            work.task.name: TaskFold(work, generation, curation, sealed_targets(run.store, work.task.name), run.oracle)
            for work in run.work
        }

    @property
    def complete(self) -> bool:
        """Whether every task has reached its target."""
        return all(fold.complete for fold in self.tasks.values())

    @property
    def accepted(self) -> dict[str, int]:
        """Rows kept, by task."""
        return {name: fold.fold.kept for name, fold in self.tasks.items()}

    @property
    def accepted_tokens(self) -> int:
        """Tokens generated for them."""
        return sum(fold.accepted_tokens for fold in self.tasks.values())

    @property
    def flows(self) -> int:
        """Rows folded, of either status."""
        return sum(fold.flows for fold in self.tasks.values())

    def replay(self) -> None:
        """Fold what is on storage.

        Raises:
            StorageError: It cannot be read, or is not what was committed.
        """
        records, state = read_records(self._run.store), replay(self._run.store).state
        prefix = PlanPrefix(state.places)
        for record in records:
            if record.task not in self.tasks:
                raise RecipeError(
                    f"{self._run.store.uri}: was planned for task '{record.task}', which the recipe does not have;"
                    " use a new run.output"
                )
            prefix.add(record)
            self.tasks[record.task].add_record(record)
        for name, fold in self.tasks.items():
            while units := prefix.after(name, fold.count, _PAGE_UNITS):
                fold.absorb(units, self.reader)

    def seen(self) -> dict[str, tuple[int, str]]:
        """What `committed_prefix` is asked with."""
        return {name: (fold.count, fold.digest) for name, fold in self.tasks.items()}

    def absorb(self, answer: PrefixAnswer, seconds: float = math.inf) -> list[str]:
        """Fold what it brings, or as much of it as that time allows; returns keys of the inputs newly kept."""
        for task in answer.stale:
            self.tasks[task].restart()
        until, keys = time.monotonic() + seconds, list[str]()
        for units in zip_longest(*([(task, unit) for unit in units] for task, units in answer.settled.items())):
            for task, unit in filter(None, units):
                keys += self.tasks[task].absorb([unit], self.reader)
            if time.monotonic() > until:
                break
        return keys

    def write(self) -> DatasetSummary:
        """Write and seal the dataset: the first rows kept of each task, exactly as many as its target.

        Raises:
            RunLockedError: Another driver has taken the run over.
        """
        run = self._run
        run.confirm()
        parts = [
            TaskRows(fold.work.task, fold.target, fold.rows(self.reader), fold.fold.counts, fold.first_answers)
            for fold in self.tasks.values()
        ]
        return write_dataset(run.store, parts, run.context.prompts, run.provenance, run.oracle, run.on_file)

    def sweep(self) -> Swept:
        """Remove what is not visible, at the end. Rows that an endpoint wrote stay: `private_sends` counts in them what was sent."""
        if isinstance(self._run.pool.engine, HttpEngine):
            return Swept()
        return sweep_rows(self._run.store, self._run.confirm)


def total_dropped(folds: Iterable[TaskFold]) -> dict[str, int]:
    """`stage: reason` to rows, most frequent first."""
    totals: dict[str, int] = {}
    for fold in folds:
        for why, count in fold.dropped.items():
            totals[why] = totals.get(why, 0) + count
    return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))
