"""What a driver notes of an arm while it generates: progress, metrics lines, the ledger of time, and what counts against the limits."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from cluster.arm import ArmFold, ArmRun
from cluster.engine_count import EngineCount
from cluster.metrics import SessionMetrics, session_total
from cluster.progress import Counters, duration
from cluster.prometheus import Gauges, ledger_series, session_series
from cluster.protocol import Progress
from cluster.time_ledger import Noted, TimeLedger, to_json
from generation.errors import BudgetError

METRICS_SECONDS = 1.0
REPLICAS_SECONDS = 60.0
"""So often the metrics say where the time of each replica went; of all together, with every line."""

STAGE = "generation"
"""Start of the names of its metrics files."""


class GenerationBook:
    """Notes of one session. A session is a driver's work on an arm; its clock starts with it.

    Args:
        run: The arm.
        fold: What has been curated of it.
        show: Takes what is shown to the user.
    """

    def __init__(self, run: ArmRun, fold: ArmFold, show: Callable[[Counters], None]) -> None:
        self._run = run
        self._fold = fold
        self._show = show
        self._earlier_seconds = session_total(run.store, STAGE, "seconds")
        self._earlier_gpu_seconds = session_total(run.store, STAGE, "gpu_seconds")
        self._started, self._session = time.monotonic(), datetime.now(UTC)
        self._engines, self._counted_at, self._gpu_seconds = EngineCount(), 0.0, 0.0
        self._metrics = SessionMetrics(run.store, STAGE, self._session)
        self._ledger = TimeLedger()
        self._gauges = Gauges(run.recipe.run.name)
        self._booked_at = self._detailed_at = -REPLICAS_SECONDS
        self._unbooked: Noted | None = None

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def book(self, progress: Progress, engines: EngineCount | None = None, *, last: bool = False) -> None:
        """Show where the arm stands; note it once a second, and in full where it is the last of a session for all that is known.

        Args:
            progress: The coordinator's counters.
            engines: Of the pool that works on it; None: those that there last were.
            last: Whether it may be the last of a session.
        """
        self._ledger.hear(progress.spent)
        self._count(engines or self._engines)
        noted = self._noted(progress)
        self._show(self._counters(noted))
        self._unbooked = noted
        if last or self._seconds - self._booked_at >= METRICS_SECONDS:
            self._write(noted, detailed=last or self._seconds - self._detailed_at >= REPLICAS_SECONDS)

    def flush(self) -> None:
        """Write what was noted, to the last."""
        if self._unbooked is not None:
            self._write(self._unbooked, detailed=True)
        self._metrics.flush()

    def _write(self, noted: Noted, *, detailed: bool) -> None:
        self._booked_at, self._unbooked = self._seconds, None
        if detailed:
            self._detailed_at = self._booked_at
        self._metrics.book(self._line(noted, detailed=detailed))
        arm, weight = self._run.arm, self._run.recipe.energy.prefill_weight
        session = session_series(arm, self._booked_at, self._gpu_seconds)
        self._gauges.publish(ledger_series(arm, noted, weight) | session)

    def _count(self, engines: EngineCount) -> None:
        """An engine holds its GPUs for as long as it has a node."""
        now = self._seconds
        self._gpu_seconds += (now - self._counted_at) * self._engines.placed * self._run.pool.gpus
        self._engines, self._counted_at = engines, now

    def limit_reached(self) -> str:
        """The limit of the recipe that is used up, in words; or empty."""
        limits, run = self._run.recipe.limits, self._run
        gpu_hours = run.spent_gpu_hours + (self._earlier_gpu_seconds + self._gpu_seconds) / 3600
        if (
            limits.wall_seconds is not None
            and run.spent_seconds + self._earlier_seconds + self._seconds >= limits.wall_seconds
        ):
            return f"limits.wall_seconds = {limits.wall_seconds:g} is reached"
        if limits.gpu_hours is not None and gpu_hours >= limits.gpu_hours:
            return f"limits.gpu_hours = {limits.gpu_hours:g} is reached"
        return ""

    def refuse_beyond_limits(self) -> None:
        """Stop where a limit is used up.

        Raises:
            BudgetError: It is.
        """
        if why := self.limit_reached():
            rows = ", ".join(f"{t.fold.kept} of {t.target} rows of {name}" for name, t in self._fold.tasks.items())
            raise BudgetError(
                f"generate: {why} with {rows}; everything is kept: raise the limit and run the same command again"
            )

    def _noted(self, progress: Progress) -> Noted:
        accepted, fold = sum(self._fold.accepted.values()), self._fold
        return Noted(progress, self._ledger.replicas, accepted, fold.accepted_tokens, self._run.pool.replicas)

    def _counters(self, noted: Noted) -> Counters:
        spent, tokens, engines = self._ledger.total, noted.progress.tokens, self._engines
        late = f"only {engines.ready}/{engines.wanted} engines for {duration(engines.short_seconds)}"
        return Counters(
            f"generate {self._run.arm}",
            noted.accepted,
            sum(task.target for task in self._fold.tasks.values()),
            tried=self._fold.flows,
            tokens=sum(counts.get("output_tokens", 0) for counts in tokens.values()),
            replicas=noted.progress.replicas,
            wanted=noted.wanted,
            spent=spent,
            note=late if engines.overdue else "",
        )

    def _line(self, noted: Noted, *, detailed: bool) -> dict[str, Any]:
        progress = noted.progress
        units = {
            "planned": progress.planned,
            "leased": progress.leased,
            "committed": progress.committed,
            "given_up": len(progress.given_up),
        }
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(),
            "session": self._session.isoformat(),
            "stage": f"generate-{self._run.arm}",
            "seconds": self._booked_at,
            "gpu_seconds": self._gpu_seconds,
            "accepted": self._fold.accepted,
            "accepted_tokens": noted.accepted_tokens,
            "instances": progress.instances,
            "rejections": progress.rejections,
            "tokens": progress.tokens,
            "units": units,
            "replicas": progress.replicas,
            "engines_wanted": self._engines.wanted,
            "engines_ready": self._engines.ready,
            "engines_short_seconds": round(self._engines.short_seconds, 3),
            "engines_overdue": self._engines.overdue,
            "spent": to_json(self._ledger.total),
        }
        if detailed and self._run.pool.gpus:
            line["device"] = device()
        each = {replica: to_json(spent) for replica, spent in noted.spent.items()}
        return {**line, "spent_by_replica": each} if detailed else line


def device() -> str:
    """Ray's name of the accelerators of its cluster; empty where it has none, or several kinds."""
    import ray

    if not ray.is_initialized():
        return ""
    prefix = "accelerator_type:"
    resources: Any = ray.cluster_resources()
    kinds = [name.removeprefix(prefix) for name in resources if name.startswith(prefix)]
    return kinds[0] if len(kinds) == 1 else ""
