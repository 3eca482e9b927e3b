"""Every query of the dashboard and of the alerts asks for metrics, labels and values that a run, Ray or KubeRay's operator has."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache

import pytest
from ray.dashboard.consts import GPU_TAG_KEYS, NODE_TAG_KEYS
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from cluster.engine_count import EngineCount
from cluster.prometheus import (
    METRICS,
    Series,
    energy_series,
    engine_series,
    ledger_series,
    session_series,
    training_series,
)
from cluster.protocol import Progress
from cluster.time_ledger import Noted
from generation.energy import Used
from generation.spent import Spent
from tests.cluster.test_prometheus import STEPS
from tests.k8s.manifests import K8S, find, of_kind, read

DASHBOARD = json.loads((K8S / "components/monitoring/dashboard.json").read_text())
OPEN = {"run", "arm", "stage", "role", "model", "source", "pool", "replica", "name", "namespace", "uid"}
"""Labels whose values depend on the run."""
STATUSES = {
    "", "Initializing", "Running", "Complete", "Failed", "ValidationFailed", "Suspending", "Suspended", "Retrying", "Waiting",
}  # fmt: skip
"""Of a RayJob: JobDeploymentStatus in ray-operator/apis/ray/v1/rayjob_types.go of KubeRay v1.7.0."""
KUBERAY = {
    "kuberay_job_deployment_status": {
        "name": set[str](),
        "namespace": set[str](),
        "uid": set[str](),
        "deployment_status": STATUSES,
    },
}
"""What ray-operator/controllers/ray/metrics/ray_job_metrics.go of KubeRay v1.7.0 has, as far as it is asked for."""
_WORDS = {"max", "sum", "by", "on", "deriv", "and", "offset", "label_values"}
_SELECTOR = re.compile(r"((?:kube)?ray_[a-z_]+)(?:\{([^}]*)\})?")


def queries() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    variables = [each["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    alerts = find(read("gke"), "PrometheusRule", "psi")["spec"]["groups"]
    return [*panels, *variables, *(rule["expr"] for group in alerts for rule in group["rules"])]


def of_a_run() -> Series:
    """Every series of a small run."""
    noted = Noted(Progress(0, 0, 0, {}, 0, {}, {}, {}), {"small-0": Spent(canary_steps=1)}, 0, 0, 1)
    return (
        {("psi_stage_running", "generate-psi"): 1.0}
        | ledger_series("psi", noted, 1.0)
        | session_series("psi", 1.0, 1.0)
        | engine_series("small", EngineCount())
        | energy_series("generate-psi", "replica", Used())
        | training_series("psi", asdict(STEPS[0]), 9)
    )


@cache
def known() -> dict[str, dict[str, set[str]]]:
    """Metric to label to the values that it may have; no values where they depend on the run."""
    found = {f"ray_{name}": {label: set[str]() for label in ("run", *each.labels)} for name, each in METRICS.items()}
    for name, *values in of_a_run():
        for label, value in zip(METRICS[name].labels, values, strict=True):
            if label not in OPEN:
                found[f"ray_{name}"][label].add(value)
    for name in METRICS_GAUGES:
        labels = GPU_TAG_KEYS if name.startswith(("node_gpu", "node_gram")) else NODE_TAG_KEYS
        found[f"ray_{name}"] = {label: set[str]() for label in labels}
    return found | KUBERAY


def mistakes(query: str) -> Iterator[str]:
    metrics = known()
    for name, selector in _SELECTOR.findall(query):
        if name not in metrics:
            yield f"there is no metric {name}"
            continue
        for label, operator, value in re.findall(r'(\w+)(=~|!=|!~|=)"([^"]*)"', selector):
            if label not in metrics[name]:
                yield f"{name} has no label {label}"
            elif metrics[name][label]:
                wrong = set(value.split("|") if "~" in operator else [value]) - metrics[name][label]
                yield from (f"{name} has no {label} {each}" for each in sorted(wrong))
    labels = {label for name in _SELECTOR.findall(query) for label in metrics.get(name[0], {})}
    grouped = {label.strip() for group in re.findall(r"(?:by|on) \(([^)]*)\)", query) for label in group.split(",")}
    yield from (f"no metric has the label {label}" for label in sorted(grouped - labels))
    rest = re.sub(r'"[^"]*"|\[[^]]*\]|\{[^}]*\}|(?:by|on) \([^)]*\)|offset \w+', "", query)
    words = (
        set(re.findall(r"[a-z_]+", _SELECTOR.sub("", rest)))
        - _WORDS
        - {label for each in metrics.values() for label in each}
    )
    yield from (f"{word} is neither a metric nor a word of these queries" for word in sorted(words))


@pytest.mark.parametrize("query", queries())
def test_every_query_asks_for_what_there_is(query: str) -> None:
    assert _SELECTOR.search(query)
    assert list(mistakes(query)) == []


@pytest.mark.parametrize(
    "query",
    [
        "max by (run) (ray_psi_row)",
        'max by (run) (ray_psi_rows{kind="acepted"})',
        'max by (run) (ray_psi_rows{kind=~"accepted|refused"})',
        'max by (run) (ray_psi_rows{sort="accepted"})',
        "max by (runs) (ray_psi_rows)",
        "max by (run) (psi_rows)",
        'max by (name) (kuberay_job_deployment_status{deployment_status="failed"})',
        "max by (instance) (ray_node_mem_used)",
        "max by (ip) (ray_node_memory_used)",
    ],
)
def test_a_query_for_what_there_is_not_is_found(query: str) -> None:
    assert list(mistakes(query)) != []


def test_every_metric_of_a_run_is_on_the_dashboard_and_can_be_drawn() -> None:
    assert {name for name, *_ in of_a_run()} == METRICS.keys()
    shown = json.dumps(DASHBOARD)
    assert [name for name in METRICS if f"ray_{name}" not in shown] == []


def test_the_dashboard_is_what_grafana_loads() -> None:
    maps = [each for each in of_kind(read("gke"), "ConfigMap") if "psi.json" in each["data"]]
    assert [json.loads(each["data"]["psi.json"]) for each in maps] == [DASHBOARD]
    assert [each["metadata"]["labels"] for each in maps] == [{"grafana_dashboard": "1"}]


def test_what_is_scraped_is_a_port_that_may_be_reached() -> None:
    manifests = read("gke")
    wanted = {each["port"] for each in find(manifests, "PodMonitor", "psi")["spec"]["podMetricsEndpoints"]}
    head = find(manifests, "RayJob", "psi-generate")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    ports = {each["name"]: each["containerPort"] for each in head["containers"][0]["ports"]}
    opened = {
        port["port"]
        for rule in find(manifests, "NetworkPolicy", "psi-metrics")["spec"]["ingress"]
        for port in rule["ports"]
    }
    assert {ports[name] for name in wanted} == opened
