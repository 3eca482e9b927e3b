"""The ledger of a run as Prometheus metrics, through Ray: each Ray node serves them on its metrics port, under these names.

    ray_psi_seconds           run, arm, part            time of all replicas by part (`cluster.time_ledger`)
    ray_psi_replica_seconds   run, arm, replica, part   the same of each replica, in runs of at most 64
    ray_psi_tokens            run, arm, kind            prompt, cached, generated and redone tokens of all replicas; accepted ones
    ray_psi_replica_tokens    run, arm, replica, kind   the same of each replica but `accepted`, in runs of at most 64
    ray_psi_canary            run, arm, replica, kind   vLLM's own statistics, on the first replica of a pool (`time_ledger.canary_view`)
    ray_psi_rows              run, arm, kind            accepted; instance and rejection as committed
    ray_psi_units             run, arm, state           planned, committed, leased, given_up
    ray_psi_replicas          run, arm, state           ready, wanted

and how many engines each pool has (`cluster.engine_count`), also while the driver waits for the first of them:

    ray_psi_engines_wanted         run, pool
    ray_psi_engines_ready          run, pool
    ray_psi_engines_short_seconds  run, pool    for how long fewer than wanted have been ready
    ray_psi_engines_overdue        run, pool    how many are missing although `full_within_seconds` have passed; else 0

All are gauges, set once a second from the driver's own sums, so they are equal to the metrics files at that second. Seconds and tokens of
replicas are those of the driver's session; rows and units, and accepted tokens, are those of the run.
"""

from collections.abc import Mapping
from typing import Any

from cluster.engine_count import EngineCount
from cluster.time_ledger import Noted, canary_view, parts, summed
from generation.spent import Spent

MAX_REPLICAS = 64
"""Each has a dozen series; more of them would be a load on whoever scrapes."""

_LABELS = {
    "psi_seconds": ("part",),
    "psi_replica_seconds": ("replica", "part"),
    "psi_tokens": ("kind",),
    "psi_replica_tokens": ("replica", "kind"),
    "psi_canary": ("replica", "kind"),
    "psi_rows": ("kind",),
    "psi_units": ("state",),
    "psi_replicas": ("state",),
}


class Prometheus:
    """Publishes where an arm stands; does nothing where this process is not connected to Ray.

    Args:
        run: The run's name.
        arm: The arm's.
        prefill_weight: See `cluster.time_ledger`.
    """

    def __init__(self, run: str, arm: str, prefill_weight: float) -> None:
        self._labels = {"run": run, "arm": arm}
        self._prefill_weight = prefill_weight
        self._gauges = _Gauges()

    def publish(self, noted: Noted) -> None:
        """Set all metrics."""
        for (name, *values), value in series(noted, self._prefill_weight).items():
            self._gauges.set(name, value, self._labels | dict(zip(_LABELS[name], values, strict=True)))


class EngineMetrics:
    """Publishes how many engines each pool of a run has; does nothing where this process is not connected to Ray.

    Args:
        run: The run's name.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges = _Gauges()

    def publish(self, pool: str, count: EngineCount) -> None:
        """Set all metrics of a pool."""
        for name, value in engine_series(count).items():
            self._gauges.set(name, value, {"run": self._run, "pool": pool})


class _Gauges:
    """Made when they are first set."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def set(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        import ray
        from ray.util.metrics import Gauge

        if not ray.is_initialized():
            return
        if name not in self._made:
            self._made[name] = Gauge(name, name.replace("_", " "), tag_keys=tuple(labels))
        self._made[name].set(value, tags=dict(labels))


def engine_series(count: EngineCount) -> dict[str, float]:
    """Name to value."""
    return {
        "psi_engines_wanted": count.wanted,
        "psi_engines_ready": count.ready,
        "psi_engines_short_seconds": count.short_seconds,
        "psi_engines_overdue": count.overdue,
    }


def series(noted: Noted, prefill_weight: float) -> dict[tuple[str, ...], float]:
    """(name, values of its own labels) to value."""
    total, progress = summed(noted.spent.values()), noted.progress
    found = {
        **_named("psi_seconds", parts(total, prefill_weight)),
        **_named("psi_tokens", _tokens(total) | {"accepted": noted.accepted_tokens}),
        **_named("psi_rows", {
            "accepted": noted.accepted,
            "instance": sum(progress.instances.values()),
            "rejection": sum(progress.rejections.values()),
        }),
        **_named("psi_units", {
            "planned": progress.planned, "committed": progress.committed,
            "leased": progress.leased, "given_up": len(progress.given_up),
        }),
        **_named("psi_replicas", {"ready": progress.replicas, "wanted": noted.wanted}),
    }  # fmt: skip
    for replica, spent in noted.spent.items() if len(noted.spent) <= MAX_REPLICAS else ():
        found |= _named("psi_replica_seconds", parts(spent, prefill_weight), replica)
        found |= _named("psi_replica_tokens", _tokens(spent), replica)
    for replica, spent in noted.spent.items():
        found |= _named("psi_canary", canary_view(spent), replica)
    return found


def _named(name: str, values: Mapping[str, float], *labels: str) -> dict[tuple[str, ...], float]:
    return {(name, *labels, last): value for last, value in values.items()}


def _tokens(spent: Spent) -> dict[str, float]:
    return {
        "prompt": spent.prompt_tokens,
        "cached": spent.cached_tokens,
        "generated": spent.output_tokens,
        "redone": spent.redone_tokens,
    }
