"""Every query of the dashboard and of the alerts asks for metrics, labels and values that a run has."""

import json
import re
from collections.abc import Iterator

import pytest

from cluster.prometheus import _LABELS, series
from cluster.protocol import Progress
from cluster.time_ledger import Noted
from generation.spent import Spent
from tests.k8s.manifests import K8S, find, of_kind, read

DASHBOARD = json.loads((K8S / "components/monitoring/dashboard.json").read_text())
COMMON = {"run", "arm"}
_WORDS = {"max", "sum", "by", "on", "deriv", "and", "offset", "label_values"}
_SELECTOR = re.compile(r"(ray_[a-z_]+)(?:\{([^}]*)\})?")


def queries() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    variables = [each["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    alerts = find(read("gke"), "PrometheusRule", "psi")["spec"]["groups"]
    return [*panels, *variables, *(rule["expr"] for group in alerts for rule in group["rules"])]


def known() -> dict[str, dict[str, set[str]]]:
    """Metric to label to the values that it may have; no values where they depend on the run."""
    spent = Spent(canary_steps=1)
    noted = Noted(Progress(0, 0, 0, {}, 0, {}, {}, {}), {"small-0": spent}, 0, 0, 1)
    found: dict[str, dict[str, set[str]]] = {}
    for name, *values in series(noted, 1.0):
        labels = found.setdefault(f"ray_{name}", {label: set[str]() for label in (*COMMON, *_LABELS[name])})
        for label, value in zip(_LABELS[name], values, strict=True):
            labels[label].add(value)
    for labels in found.values():
        if "replica" in labels:
            labels["replica"].clear()
    return found


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
    words = set(re.findall(r"[a-z_]+", _SELECTOR.sub("", rest))) - _WORDS - COMMON
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
    ],
)
def test_a_query_for_what_there_is_not_is_found(query: str) -> None:
    assert list(mistakes(query)) != []


def test_every_metric_of_the_ledger_is_on_the_dashboard() -> None:
    shown = json.dumps(DASHBOARD)
    assert [name for name in known() if name not in shown] == []


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
