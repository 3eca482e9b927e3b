"""The driver's loop over one arm: plans, follows, folds, and knows when to stop. No row passes between it and the replicas."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from cluster.arm import ArmFold, ArmRun
from cluster.cell_yield import SeenUnits
from cluster.coordinator_link import CoordinatorLink
from cluster.engine_count import EngineCount
from cluster.generation_book import GenerationBook
from cluster.pacing import Allowance, Standing, fitting, flows_of, replicas_needed, units_wanted
from cluster.progress import Counters
from cluster.protocol import GenerateJob, Tick, TickAnswer
from cluster.task_fold import TaskFold
from cluster.waves import WaveOrder, chance, ramped, wave, weights_by_need
from generation.errors import GaveUpError, StorageError, YieldError
from generation.instances.plan import PlanRecord

TICK_SECONDS = 0.2
"""Ticks begin at least so far apart, unless there is more to fold than came with one."""
HEAR_SECONDS = 0.5
"""With nothing to fold, the coordinator answers once there may be something to plan, or after so long: replicas may have died."""
FOLD_SECONDS = 1.0
"""At most so long the driver folds before it looks after replicas and plan again."""
DRAIN_SECONDS = 30.0
_TOP_REASONS = 5
EXCERPT_CHARS = 100


class GenerationPool(Protocol):
    """What the loop asks of a pool of replicas."""

    def count(self) -> EngineCount:
        """How many engines there are, and should be."""
        ...

    def start_generation(self, job: GenerateJob, coordinator: Any) -> None:
        """Have every replica lease units from the coordinator until it is told to leave."""
        ...

    def tend(self, coordinator: Any) -> None:
        """Replace what died; called every tick."""
        ...

    def recall(self, replicas: int) -> None:
        """So many are needed: have those back that had left, where far fewer are there; called every tick."""
        ...

    def stop_generation(self) -> None:
        """Stop at once; what is not committed is lost."""
        ...


class GenerationLoop:
    """Runs one arm until every task has its rows.

    Args:
        run: The arm.
        fold: Its folds, which may have been replayed from storage.
        link: To the coordinator.
        show: Takes what is shown to the user, every tick.
    """

    def __init__(self, run: ArmRun, fold: ArmFold, link: CoordinatorLink, show: Callable[[Counters], None]) -> None:
        self._run = run
        self._fold = fold
        self._link = link
        self._book = GenerationBook(run, fold, show)
        self._keys: list[str] = []
        self._needed: int | None = None

    def work(self, pool: Callable[[], GenerationPool]) -> None:
        """Generate until every task has its rows; the pool is asked for once it is known to be needed.

        Raises:
            YieldError: A task's last units yielded too little.
            GaveUpError: The same, where units were given up; or too many replicas died.
            BudgetError: A limit of the recipe is reached; what was under way has been committed.
            StorageError: The run folder cannot be read or written.
            RunLockedError: Another driver has taken the run over.
            PreemptedError: This driver was asked to leave; what was under way has been committed.
        """
        self._settle()
        for task in self._fold.tasks.values():
            task.forgive()
        self._refuse_to_go_on()
        if not self._fold.complete:
            replicas = pool()
            with self._run.leaving.in_own_time():
                self._work_with(replicas)

    def _work_with(self, pool: GenerationPool) -> None:
        context, drain_seconds = self._run.context, self._run.recipe.cluster.drain_seconds
        job = GenerateJob(self._run.store.uri, context.run_id, context, drain_seconds=drain_seconds)
        try:
            self._plan(self._follow())
            pool.start_generation(job, self._link.handle)
            self._generate(pool)
        finally:
            with suppress(StorageError):
                self._link.call("drain")
            pool.stop_generation()
            self._book.flush()
        self._settle()
        self._book.flush()

    def _generate(self, pool: GenerationPool) -> None:
        while not self._fold.complete and not self._run.leaving.asked():
            began = time.monotonic()
            pool.tend(self._link.handle)
            answer = self._follow(HEAR_SECONDS)
            needed = self._needed = self._plan(answer)
            pool.recall(needed)
            self._book.book(answer.progress, pool.count())
            if self._book.limit_reached():
                self._drain(pool)
            self._refuse_to_go_on()
            if not (answer.prefix.more or self._fold.complete):
                time.sleep(max(0.0, began + TICK_SECONDS - time.monotonic()))
        if not self._fold.complete:
            self._drain(pool)

    def _refuse_to_go_on(self) -> None:
        for task in self._fold.tasks.values():
            if seen := task.out_of_patience():
                self._book_now()
                raise self._too_little(task, seen)
        if not self._fold.complete:
            self._book.refuse_beyond_limits()

    def _follow(self, wait_seconds: float = 0.0) -> TickAnswer:
        """Fold some of what has become visible since."""
        tick = Tick(self._fold.seen(), self._keys, self._needed, wait_seconds)
        answer: TickAnswer = self._link.call("tick", tick)
        self._keys = self._fold.absorb(answer.prefix, FOLD_SECONDS)
        return answer

    def _plan(self, heard: TickAnswer) -> int:
        """Plan what is missing; returns how many replicas have something to do from now on."""
        answer, progress = heard.prefix, heard.progress
        flows, replicas = self._run.recipe.generation.flows_per_unit, self._run.pool.replicas
        standings = {
            name: task.standing(answer.num_settled.get(name, 0), progress.instances.get(name, 0))
            for name, task in self._fold.tasks.items()
        }
        allowance, index = Allowance(list(standings.values()), flows, replicas), answer.next_record
        for name, standing in standings.items():
            if standing.lacks:
                task = self._fold.tasks[name]
                units = units_wanted(standing, flows, replicas, progress.leased)
                order = WaveOrder(name, units, index, flows)
                records = self._wave(task, standing, order, allowance.limit(standing)) if units else []
                allowance.take(standing.excess(), standing.excess(flows_of(records, task.group)))
                if records:
                    index = self._link.call("add_records", records)
                for record in records:
                    task.add_record(record)
        return replicas_needed(list(standings.values()), flows)

    def _wave(self, task: TaskFold, standing: Standing, order: WaveOrder, limit: int) -> list[PlanRecord]:
        """The next records of a task: so many units as the order says, or fewer where they do not fit the limit."""
        config, name, index = self._run.recipe.generation, order.task, order.first_index
        rng = chance(self._run.recipe.run.seed, name, index)
        wanted = {group: need.wanted for group, need in standing.needs.items()}
        weights = weights_by_need(task.cells(), task.cells_of, wanted, config.min_novelty, rng)
        temperature = ramped(config.draft_ramp, task.fold.kept, task.target)

        def make(units: int) -> list[PlanRecord]:
            smaller = replace(order, units=units, draft_temperature=temperature)
            return wave(smaller, task.work.kinds, weights, rng)

        return fitting(order.units, make, standing, task.group, limit)

    def _drain(self, pool: GenerationPool) -> None:
        """Let the replicas commit what they have leased, for a while."""
        self._link.call("drain")
        until = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < until and self._link.call("progress").leased:
            pool.tend(self._link.handle)
            time.sleep(TICK_SECONDS)
        self._settle()

    def _settle(self) -> None:
        """Fold all that is visible, and book where that leads."""
        while self._follow().prefix.has_news:
            pass
        self._book_now()

    def _book_now(self) -> None:
        self._book.book(self._link.call("progress"), last=True)

    def _too_little(self, task: TaskFold, seen: SeenUnits) -> YieldError | GaveUpError:
        name, config = task.work.task.name, self._run.recipe.generation
        if seen.given_up:
            reasons = self._link.call("progress").given_up
            units = "; ".join(f"{unit}: {reasons.get(unit, 'given up')}" for unit in task.given_up[-_TOP_REASONS:])
            return GaveUpError(
                f"generate: task '{name}': {task.fold.kept} of {task.target} rows accepted, {len(task.given_up)} units given up: {units}."
                " Look at the replicas' logs; units that were given up stay so, the same command goes on with others"
            )
        top = list(task.dropped.most_common(_TOP_REASONS))
        private = task.work.task.config.privacy == "private"  # a message may end in a log that others read
        said = {why: "" if private else f", such as {_excerpt(task.examples[why])}" for why, _ in top}
        lines = [f"  {count:>9,}  {why}{said[why]}" for why, count in top]
        run = self._run.recipe.run.output
        return YieldError(
            f"generate {self._run.arm}: task '{name}': {task.fold.kept} of {task.target:,} rows accepted,\n{_lacking(task)}{seen.kept} of the last"
            f" {seen.flows:,} flows (generation.min_yield = {config.min_yield:g}). Dropped:\n"
            + "\n".join([*(lines or ["  nothing"]), *filter(None, [task.spent_cells()])])
            + f"\nEverything is kept; look at it with `psi show {run}`.\n"
            "What helps: a prompt set that the small model understands, better principles or\n"
            "another small model, each in a new run folder; or, to go on in this one, a lower\n"
            "generation.min_yield."
        )


def _lacking(task: TaskFold) -> str:
    """The groups of cells that lack rows, in a line; empty where the target is not divided."""
    if not task.quotas.groups:
        return ""
    groups = [f"{group} lacks {rows:,} of {task.quotas.shares[group]:,}" for group, rows in task.lacking.items()]
    more = f" and {len(groups) - _TOP_REASONS} more" if len(groups) > _TOP_REASONS else ""
    return f"{', '.join(groups[:_TOP_REASONS])}{more};\n"


def _excerpt(text: str) -> str:
    """What a model wrote, in one short line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= EXCERPT_CHARS else f"{line[:EXCERPT_CHARS]} ...")
