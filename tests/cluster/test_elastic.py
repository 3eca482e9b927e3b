"""A run on a cluster that comes and goes: nothing is there when it begins, nodes come while it works, and it holds none once its rows are made."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from generation.storage import Store
from tests.chaos.checker import check_run
from tests.chaos.nodes import Nodes, ray_nodes, signal_if_there
from tests.chaos.recipes import RUN_ID, psi_command, scripted_recipe
from tests.end_to_end.live_run import ROOT

ROWS, CPUS_OF_A_NODE = 900, 2
"""A replica needs a CPU."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with ray_nodes(workers=0, cpus=CPUS_OF_A_NODE) as nodes:
        yield nodes


def until(what: str, look: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, f"not in {seconds:.0f} s: {what}"
        time.sleep(0.1)


def demand_and_use(nodes: Nodes) -> tuple[int, list[str]]:
    """What Ray's autoscaler looks at: how many requests wait for a node, and what keeps each worker from going."""
    from ray._raylet import GcsClient
    from ray.autoscaler.v2.sdk import get_cluster_resource_state
    from ray.core.generated.autoscaler_pb2 import NodeStatus

    state = get_cluster_resource_state(GcsClient(address=nodes.address))
    asked = sum(each.count for each in state.pending_resource_requests) + len(state.pending_gang_resource_requests)
    workers = [node for node in state.node_states if node.total_resources.get("CPU")]
    return asked, [f"{node.node_activity}" for node in workers if node.status != NodeStatus.IDLE]


def living(nodes: Nodes) -> list[Any]:
    """Actors that are not dead, by class, and placement groups that are not removed."""
    from ray._private.state import GlobalState
    from ray._raylet import GcsClientOptions

    state = GlobalState()
    state._initialize_global_state(GcsClientOptions.create(nodes.address, None, True, False))
    actors = [
        each["ActorClassName"] for each in state.actor_table(None, None, None).values() if each["State"] != "DEAD"
    ]
    groups = [each for each in state.placement_group_table().values() if each["state"] != "REMOVED"]
    return [*actors, *groups]


def writers(run: Path) -> set[str]:
    """Numbers of the replicas that have written rows."""
    return {path.name.split("-")[2] for path in (run / "rows").rglob("*.arrow")}


@contextmanager
def held(processes: list[int]) -> Iterator[None]:
    """Let processes stand still while the block runs."""
    for process in processes:
        signal_if_there(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            signal_if_there(process, signal.SIGCONT)


def test_a_run_begins_without_a_node_grows_with_each_and_holds_none_while_its_dataset_is_written(
    nodes: Nodes, tmp_path: Path
) -> None:
    run, mark = tmp_path / "run", tmp_path / "sealing"
    recipe = scripted_recipe(tmp_path, ROWS, seconds_per_step=0.2)
    psi = (sys.executable, "-m", "tests.cluster.sealing", str(mark))
    command = psi_command(recipe, nodes.address, run, ["pools.small.full_within_seconds=1"], psi)
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log)
    try:
        until("demand", lambda: demand_and_use(nodes)[0] == 4)
        nodes.add_worker()
        until("rows of a full node", lambda: len(writers(run)) == CPUS_OF_A_NODE)
        with held(nodes.titled("ray::Replica")):  # so that the others find work
            nodes.add_worker()
            until("rows of another node", lambda: len(writers(run)) > CPUS_OF_A_NODE)
        until("all rows", mark.exists)
        until("idle nodes", lambda: demand_and_use(nodes) == (0, []))
        assert living(nodes) == []
        mark.unlink()
        assert driver.wait(30) == 0
    finally:
        driver.kill()
        print((tmp_path / "log").read_text())  # noqa: T201
    assert check_run(run, RUN_ID, ROWS) == []
    engines = Store(str(run)).read_json("stages/generate-psi.json")["engines"]["small"]
    assert engines["wanted"] == 4
    assert engines["most_ready"] > CPUS_OF_A_NODE
    assert "only 0 of 4 engines are ready after" in (tmp_path / "log").read_text()
