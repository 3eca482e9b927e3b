"""What a run books, as Prometheus metrics through Ray: each Ray node serves those of its own processes on its metrics port.

`METRICS` is all of them, here without the `ray_` that Ray puts before each name. All are gauges that the driver sets from its own sums
whenever it writes them down, so they are equal to the lines of the run folder at that moment. Those of generation and of its processes
count from the start of the driver's session; rows, units and accepted tokens, and training's steps, are those of the run.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cluster.engine_count import EngineCount
from cluster.repeating import repeating
from cluster.time_ledger import Noted, canary_view, parts, summed
from generation.energy import Used
from generation.spent import Spent

MAX_REPLICAS = 64
"""Each has a dozen series; more of them would be a load on whoever scrapes."""

GAUGE_SECONDS = 5.0
"""So often at least a gauge must be set that is to stay: Ray forgets it 20 s after it was last set."""

Series = dict[tuple[str, ...], float]
"""Name of a metric and the values of its labels, without `run`, to its value."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A gauge.

    Attributes:
        help: What it says, with its unit.
        labels: Their names, after `run`.
    """

    help: str
    labels: tuple[str, ...]


METRICS: Mapping[str, Metric] = {
    "psi_stage_running": Metric("1 while a stage is under way, then 0", ("stage",)),
    "psi_session_seconds": Metric("wall time, and GPU time of engines with a node", ("arm", "kind")),
    "psi_seconds": Metric("time of all replicas by part (cluster.time_ledger)", ("arm", "part")),
    "psi_replica_seconds": Metric("the same of each replica, in runs of at most 64", ("arm", "replica", "part")),
    "psi_tokens": Metric("prompt, cached, generated and redone tokens of all replicas; accepted ones", ("arm", "kind")),
    "psi_replica_tokens": Metric("the same of each replica, but accepted ones", ("arm", "replica", "kind")),
    "psi_canary": Metric("vLLM's own statistics, on the first replica of a pool", ("arm", "replica", "kind")),
    "psi_rows": Metric("rows: accepted; instances and rejections as committed", ("arm", "kind")),
    "psi_units": Metric("units: planned, committed, leased, given up", ("arm", "state")),
    "psi_replicas": Metric("replicas that the coordinator hears of, and those of the recipe", ("arm", "state")),
    "psi_engines_wanted": Metric("engines that there should be", ("pool",)),
    "psi_engines_ready": Metric("engines that take work", ("pool",)),
    "psi_engines_short_seconds": Metric("for how long fewer than wanted have been ready", ("pool",)),
    "psi_engines_overdue": Metric("engines missing although full_within_seconds have passed; else 0", ("pool",)),
    "psi_core_seconds": Metric("CPU time of processes", ("stage", "role")),
    "psi_gpu_joules": Metric("energy of GPUs; absent where some could not be metered", ("stage", "role", "method")),
    "psi_training_steps": Metric("optimizer steps: done; wanted, where training.max_steps says so", ("model", "state")),
    "psi_training_loss": Metric("cross entropy of the last step, nats a supervised token", ("model",)),
    "psi_training_evaluation_loss": Metric("loss on held-out rows, nats a token", ("model", "source")),
    "psi_training_learning_rate": Metric("learning rate of the last step", ("model",)),
    "psi_training_gradient_norm": Metric("gradient norm of the last step before clipping", ("model",)),
    "psi_training_tokens_per_second": Metric("tokens of the last step in its time, all ranks", ("model",)),
    "psi_training_mfu": Metric("model FLOPs over what the devices could do; absent on CPU", ("model",)),
    "psi_training_data_wait": Metric("share of the last step in which a rank had no batch", ("model",)),
    "psi_training_padding": Metric("share of the last step's positions that was padding", ("model",)),
}
_OF_A_STEP = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "mfu", "data_wait", "padding")


class Gauges:
    """Sets the metrics of a run; does nothing where this process is not connected to Ray.

    Args:
        run: The run's name.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._made: dict[str, Any] = {}

    def publish(self, series: Series) -> None:
        """Set some of them."""
        import ray

        if not ray.is_initialized():
            return
        for (name, *values), value in series.items():
            labels = dict(zip(METRICS[name].labels, values, strict=True))
            self._gauge(name).set(value, tags={"run": self._run, **labels})

    def _gauge(self, name: str) -> Any:
        from ray.util.metrics import Gauge

        if name not in self._made:
            metric = METRICS[name]
            self._made[name] = Gauge(name, metric.help, tag_keys=("run", *metric.labels))
        return self._made[name]


@contextmanager
def stage_published(run: str, stage: str) -> Generator[None]:
    """Say that a stage of a run is under way while the block is."""
    gauges = Gauges(run)

    def say() -> None:
        gauges.publish({("psi_stage_running", stage): 1.0})

    say()
    try:
        with repeating(say, GAUGE_SECONDS, "stage-gauge"):
            yield
    finally:
        gauges.publish({("psi_stage_running", stage): 0.0})


def session_series(arm: str, wall_seconds: float, gpu_seconds: float) -> Series:
    """What a driver's session on an arm has cost."""
    return _named("psi_session_seconds", {"wall": wall_seconds, "gpu": gpu_seconds}, arm)


def engine_series(pool: str, count: EngineCount) -> Series:
    """How many engines a pool has."""
    return {
        ("psi_engines_wanted", pool): count.wanted,
        ("psi_engines_ready", pool): count.ready,
        ("psi_engines_short_seconds", pool): count.short_seconds,
        ("psi_engines_overdue", pool): count.overdue,
    }


def energy_series(stage: str, role: str, used: Used) -> Series:
    """What the processes of a role have used in a stage."""
    joules = {"measured": used.measured_mj / 1000, "estimated": used.estimated_mj / 1000}
    found = {} if used.unmetered else _named("psi_gpu_joules", joules, stage, role)
    return {("psi_core_seconds", stage, role): used.core_ms / 1000, **found}


def training_series(model: str, line: Mapping[str, Any], max_steps: int | None) -> Series:
    """The last step of a model's training, a line of `training.metrics.StepMetrics`; one that is empty, before the first."""
    steps = {"done": float(line.get("step", 0))} | ({} if max_steps is None else {"wanted": float(max_steps)})
    said = {("psi_training_" + key, model): line[key] for key in _OF_A_STEP if line.get(key) is not None}
    evaluated = _named("psi_training_evaluation_loss", line.get("evaluation", {}), model)
    return {**_named("psi_training_steps", steps, model), **said, **evaluated}


def ledger_series(arm: str, noted: Noted, prefill_weight: float) -> Series:
    """Where an arm stands, and where the time of its replicas went.

    Args:
        arm: Its name.
        noted: What its book has noted.
        prefill_weight: See `cluster.time_ledger`.
    """
    total, progress = summed(noted.spent.values()), noted.progress
    rows = {
        "accepted": noted.accepted,
        "instance": sum(progress.instances.values()),
        "rejection": sum(progress.rejections.values()),
    }
    units = {
        "planned": progress.planned,
        "committed": progress.committed,
        "leased": progress.leased,
        "given_up": len(progress.given_up),
    }
    found = {
        **_named("psi_seconds", parts(total, prefill_weight), arm),
        **_named("psi_tokens", _tokens(total) | {"accepted": noted.accepted_tokens}, arm),
        **_named("psi_rows", rows, arm),
        **_named("psi_units", units, arm),
        **_named("psi_replicas", {"ready": progress.replicas, "wanted": noted.wanted}, arm),
    }
    for replica, spent in noted.spent.items() if len(noted.spent) <= MAX_REPLICAS else ():
        found |= _named("psi_replica_seconds", parts(spent, prefill_weight), arm, replica)
        found |= _named("psi_replica_tokens", _tokens(spent), arm, replica)
    for replica, spent in noted.spent.items():
        found |= _named("psi_canary", canary_view(spent), arm, replica)
    return found


def _named(name: str, values: Mapping[str, float], *labels: str) -> Series:
    return {(name, *labels, last): value for last, value in values.items()}


def _tokens(spent: Spent) -> dict[str, float]:
    return {
        "prompt": spent.prompt_tokens,
        "cached": spent.cached_tokens,
        "generated": spent.output_tokens,
        "redone": spent.redone_tokens,
    }
