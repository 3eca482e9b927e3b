"""What is served to Prometheus is what the run folder holds."""

import json
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from cluster.driver import run_all
from cluster.progress import ProgressLine
from cluster.prometheus import MAX_REPLICAS, METRICS, Gauges, Series, ledger_series, training_series
from cluster.protocol import Progress
from cluster.recipe import load_recipe
from cluster.time_ledger import Noted, from_json, parts
from cluster.train_progress import training_shown
from generation.storage import Store
from tests.chaos.recipes import RUN, scripted_recipe
from tests.cluster.test_time_ledger import CANARY, SPENT, VIEW
from training.metrics import StepMetrics

WEIGHT = 0.25
DEADLINE_SECONDS = 60.0
RAYS_OWN = {"NodeAddress", "Version", "SessionName", "WorkerId", "Component", "JobId", "NodeId"} | {
    f"otel_scope_{name}" for name in ("name", "version", "schema_url")
}
STEPS = [
    StepMetrics(
        step=step, epoch=0, loss=2.0 / step, learning_rate=1e-3, gradient_norm=0.5, tokens=900, supervised_tokens=300, supervised=1 / 3,
        padding=0.125, rank_spread=0.0, data_wait=0.25, seconds=0.5, tokens_per_second=1800.0, mfu=0.375, evaluation={"held-out": 3.0},
    )
    for step in (1, 2)
]  # fmt: skip


def noted(replicas: int) -> Noted:
    progress = Progress(9, 7, 2, {"u": "poison"}, replicas, {"a": 50}, {"a/parse/no input": 6}, {})
    return Noted(progress, {f"r{i}": SPENT for i in range(replicas)}, 40, 280, replicas + 1)


def test_many_replicas_are_published_as_a_sum_alone() -> None:
    few, many = ledger_series("psi", noted(MAX_REPLICAS), WEIGHT), ledger_series("psi", noted(MAX_REPLICAS + 1), WEIGHT)
    assert ("psi_replica_seconds", "psi", "r0", "boot") in few
    assert {name for name, *_ in many} == {"psi_seconds", "psi_tokens", "psi_rows", "psi_units", "psi_replicas"}
    assert many["psi_seconds", "psi", "boot"] == 3 * (MAX_REPLICAS + 1)


def test_only_what_a_canary_saw_is_published_as_that() -> None:
    some = noted(MAX_REPLICAS + 1)
    some.spent["r7"] = CANARY
    series = ledger_series("psi", some, WEIGHT)
    published = {tuple(labels): value for (name, *labels), value in series.items() if name == "psi_canary"}
    assert published == {("psi", "r7", kind): value for kind, value in VIEW.items()}


def test_what_a_step_does_not_know_is_not_published() -> None:
    line = asdict(STEPS[0]) | {"mfu": None, "gradient_norm": None, "evaluation": {}}
    missing = {name for name in METRICS if name.startswith("psi_training")} - {
        name for name, *_ in training_series("psi", line, None)
    }
    assert missing == {"psi_training_mfu", "psi_training_gradient_norm", "psi_training_evaluation_loss"}
    assert training_series("psi", {}, 30) == {
        ("psi_training_steps", "psi", "done"): 0.0,
        ("psi_training_steps", "psi", "wanted"): 30.0,
    }


@pytest.fixture
def quick_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray whose processes hand their metrics over twice a second, which drivers find already joined."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv(
        "RAY_metrics_report_interval_ms", "60000"
    )  # the node's agent forgets what was not set for twice as long
    monkeypatch.setenv(
        "RAY_metrics_report_interval_ms", "60000"
    )  # the node's agent forgets what was not set for twice as long
    monkeypatch.setattr("cluster.driver.ray_session", lambda config: nullcontext())
    variables = {"PYTHONPATH": str(Path(__file__).parents[2])}
    quick = {"metrics_report_interval_ms": 500}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, namespace="psi",
             runtime_env={"env_vars": variables}, _system_config=quick)  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


@pytest.mark.usefixtures("quick_ray")
def test_every_metric_is_served_by_a_real_cluster_with_its_labels_and_the_values_of_the_run_folder(
    tmp_path: Path,
) -> None:
    folders = [f"run.output={tmp_path}/run", f"run.scratch={tmp_path}/scratch"]
    pool = ["pools.small.cpus=0.25", "pools.small.replicas=2"]
    loaded = load_recipe(scripted_recipe(tmp_path, rows=60), [*folders, *pool])
    store = run_all(loaded, ("generate",))
    train(loaded, tmp_path / "training.jsonl")
    planted = noted(1)
    planted.spent["r0"] = CANARY  # which the scripted engine does not keep
    Gauges(RUN).publish(ledger_series("planted", planted, WEIGHT))
    wanted = written(store, loaded.recipe.energy.prefill_weight) | ledger_series("planted", planted, WEIGHT)
    wanted |= training_series("psi", asdict(STEPS[-1]), 7)
    assert {name for name, *_ in wanted} == METRICS.keys()
    until, found = time.monotonic() + DEADLINE_SECONDS, Series()
    while found != pytest.approx(wanted, abs=2e-3) and time.monotonic() < until:
        time.sleep(0.5)
        found = scraped()
    assert wanted.keys() - found.keys() == set()
    assert found.keys() - wanted.keys() == set()
    assert found == pytest.approx(wanted, abs=2e-3)


def train(loaded: Any, metrics: Path) -> None:
    """Two steps of a job, as its first rank would note them, seen by its driver."""
    recipe = loaded.recipe.model_copy(update={"training": loaded.recipe.training.model_copy(update={"max_steps": 7})})
    run: Any = SimpleNamespace(recipe=recipe, line=ProgressLine(StringIO(), time.monotonic))
    with training_shown(run, "psi", metrics):
        metrics.write_text("".join(json.dumps(asdict(step)) + "\n" for step in STEPS))


def written(store: Store, weight: float) -> Series:
    """What the run folder says, under the names of the metrics."""
    line = lines(store, "metrics", "generation")[-1]
    spent = {replica: from_json(each) for replica, each in line["spent_by_replica"].items()}
    units, accepted = line["units"], sum(line["accepted"].values())
    progress = Progress(
        units["planned"], units["committed"], 0, {}, line["replicas"], line["instances"], line["rejections"], {}
    )
    found = ledger_series("psi", Noted(progress, spent, accepted, line["accepted_tokens"], 2), weight)
    assert sum(found["psi_seconds", "psi", part] for part in parts(CANARY, 1)) == pytest.approx(
        from_json(line["spent"]).seconds, abs=0.01
    )
    found |= {
        ("psi_session_seconds", "psi", "wall"): line["seconds"],
        ("psi_session_seconds", "psi", "gpu"): line["gpu_seconds"],
    }
    engines = lines(store, "metrics", "engines")[-1]
    found |= {
        (f"psi_engines_{name}", "small"): float(engines[name])
        for name in ("wanted", "ready", "short_seconds", "overdue")
    }
    used = Counter[tuple[str, ...]]()
    for line in lines(store, "energy", ""):
        where = line["stage"], line["role"]
        used["psi_core_seconds", *where] += line["core_ms"] / 1000
        used["psi_gpu_joules", *where, "measured"] += line["measured_mj"] / 1000
        used["psi_gpu_joules", *where, "estimated"] += line["estimated_mj"] / 1000
    found |= {("psi_stage_running", stage): 0.0 for stage in ("principles", "generate-psi")}
    return found | dict(used)


def lines(store: Store, folder: str, start: str) -> list[dict[str, Any]]:
    names = [name for name in store.names(folder) if name.startswith(start) and name.endswith(".jsonl")]
    return [line for name in names for line in store.read_lines(f"{folder}/{name}")]


def scraped() -> Series:
    """What this node serves of ours; every family is a gauge with our help, every sample has our labels, and otherwise Ray's alone."""
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    opener, found = urllib.request.build_opener(urllib.request.ProxyHandler({})), Series()
    try:
        with opener.open(address, timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return found  # the node's agent is not up yet
    for family in text_string_to_metric_families(text):
        if not family.name.startswith("ray_psi_"):
            continue
        name = family.name.removeprefix("ray_")
        assert (family.type, family.documentation) == ("gauge", METRICS[name].help)
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("run") == RUN
            found[name, *(labels.pop(label) for label in METRICS[name].labels)] = sample.value
            assert labels.keys() <= RAYS_OWN
    return found
