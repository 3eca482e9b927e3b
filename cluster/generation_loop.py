"""The driver's loop over one arm: plans, follows, folds, and knows when to stop. No row passes between it and the replicas."""

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Protocol

from cluster.arm import ArmFold, ArmRun
from cluster.coordinator_link import CoordinatorLink
from cluster.metrics import SessionMetrics, session_seconds
from cluster.progress import Counters
from cluster.protocol import GenerateJob, PrefixAnswer, Progress
from cluster.task_fold import SeenUnits, TaskFold
from cluster.waves import WaveOrder, cell_weights, chance, ramped, units_to_plan, wave
from generation.errors import BudgetError, GaveUpError, StorageError, YieldError

TICK_SECONDS = 0.2
METRICS_SECONDS = 1.0
DRAIN_SECONDS = 30.0
_TOP_REASONS = 5
EXCERPT_CHARS = 100


class GenerationPool(Protocol):
    """What the loop asks of a pool of replicas."""

    def start_generation(self, job: GenerateJob, coordinator: Any) -> None:
        """Have every replica lease units from the coordinator until it is told to leave."""
        ...

    def tend(self, coordinator: Any) -> None:
        """Replace what died; called every tick."""
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
        self._show = show
        self._earlier = session_seconds(run.store, "generation")
        self._started = time.monotonic()
        self._metrics = SessionMetrics(run.store, "generation", datetime.now(UTC))
        self._booked_at = -METRICS_SECONDS

    def work(self, pool: Callable[[], GenerationPool]) -> None:
        """Generate until every task has its rows; the pool is asked for once it is known to be needed.

        Raises:
            YieldError: A task's last units yielded too little.
            GaveUpError: The same, where units were given up; or too many replicas died.
            BudgetError: A limit of the recipe is reached; what was under way has been committed.
            StorageError: The run folder cannot be read or written.
            RunLockedError: Another driver has taken the run over.
        """
        self._settle()
        for task in self._fold.tasks.values():
            task.forgive()
        self._refuse_to_go_on()
        if not self._fold.complete:
            self._work_with(pool())

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
            self._metrics.flush()
        self._settle()
        self._metrics.flush()

    def _generate(self, pool: GenerationPool) -> None:
        while not self._fold.complete:
            pool.tend(self._link.handle)
            answer = self._follow()
            self._plan(answer)
            self._book(self._link.call("progress"))
            if self._limit_reached():
                self._drain(pool)
            self._refuse_to_go_on()
            if not any(answer.settled.values()):
                time.sleep(TICK_SECONDS)

    def _refuse_to_go_on(self) -> None:
        for task in self._fold.tasks.values():
            if seen := task.out_of_patience():
                self._book_now()
                raise self._too_little(task, seen)
        if not self._fold.complete and (why := self._limit_reached()):
            raise BudgetError(
                f"generate: {why} with {self._accepted()}; everything is kept: raise the limit and run the same command again"
            )

    def _follow(self) -> PrefixAnswer:
        """Fold a page of what has become visible since."""
        answer: PrefixAnswer = self._link.call("committed_prefix", self._fold.seen())
        keys = self._fold.absorb(answer)
        if keys:
            self._link.call("publish_seen", keys)
        return answer

    def _plan(self, answer: PrefixAnswer) -> None:
        config, index = self._run.recipe.generation, answer.next_record
        for name, task in self._fold.tasks.items():
            standing = task.standing(answer.planned.get(name, 0))
            units = units_to_plan(standing, config.flows_per_unit, self._run.pool.replicas)
            if units:
                rng = chance(self._run.recipe.run.seed, name, index)
                weights = cell_weights(task.cells(), config.min_novelty, rng)
                order = WaveOrder(name, units, index, config.flows_per_unit, ramped(config.draft_ramp, standing))
                index = self._link.call("add_records", wave(order, task.work.kinds, weights, rng))

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
        answer = self._follow()
        while answer.stale or any(answer.settled.values()):
            answer = self._follow()
        self._book_now()

    def _book_now(self) -> None:
        self._booked_at = -METRICS_SECONDS
        self._book(self._link.call("progress"))

    def _book(self, progress: Progress) -> None:
        seconds, accepted = time.monotonic() - self._started, self._fold.accepted
        tokens = sum(counts.get("output_tokens", 0) for counts in progress.tokens.values())
        done, target = sum(accepted.values()), sum(task.target for task in self._fold.tasks.values())
        stage = f"generate {self._run.arm}"
        self._show(Counters(stage, done, target, "rows", self._fold.flows, tokens, progress.replicas))
        if seconds - self._booked_at < METRICS_SECONDS:
            return
        self._booked_at = seconds
        line = {"time": datetime.now(UTC).isoformat(), "stage": f"generate-{self._run.arm}", "seconds": seconds}
        counters = {"instances": progress.instances, "rejections": progress.rejections, "tokens": progress.tokens}
        units = {"planned": progress.planned, "committed": progress.committed, "given_up": len(progress.given_up)}
        self._metrics.book({**line, "accepted": accepted, **counters, "units": units, "replicas": progress.replicas})

    def _limit_reached(self) -> str:
        limits, run = self._run.recipe.limits, self._run
        seconds = self._earlier + time.monotonic() - self._started
        gpu_hours = run.spent_gpu_hours + seconds * run.pool.gpus * run.pool.replicas / 3600
        if limits.wall_seconds is not None and run.spent_seconds + seconds >= limits.wall_seconds:
            return f"limits.wall_seconds = {limits.wall_seconds:g} is reached"
        if limits.gpu_hours is not None and gpu_hours >= limits.gpu_hours:
            return f"limits.gpu_hours = {limits.gpu_hours:g} is reached"
        return ""

    def _accepted(self) -> str:
        return ", ".join(f"{task.fold.kept} of {task.target} rows of {name}" for name, task in self._fold.tasks.items())

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
            f"generate {self._run.arm}: task '{name}': {task.fold.kept} of {task.target:,} rows accepted,\n{seen.kept} of the last"
            f" {seen.flows:,} flows (generation.min_yield = {config.min_yield:g}). Dropped:\n"
            + "\n".join([*(lines or ["  nothing"]), *filter(None, [task.spent_cells()])])
            + f"\nEverything is kept; look at it with `psi show {run}`.\n"
            "What helps: a prompt set that the small model understands, better principles or\n"
            "another small model, each in a new run folder; or, to go on in this one, a lower\n"
            "generation.min_yield."
        )


def _excerpt(text: str) -> str:
    """What a model wrote, in one short line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= EXCERPT_CHARS else f"{line[:EXCERPT_CHARS]} ...")
