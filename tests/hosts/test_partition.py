"""A host of a run is cut off for a while. What its replicas had in hand is done by others, and what they bring when they are back is late."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.checker import check_run
from tests.chaos.recipes import RUN_ID, psi_command, scripted_recipe
from tests.hosts.hosts import Host, Hosts, some_hosts, why_not

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not()), pytest.mark.timeout(600)]

ROWS = 2500


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with some_hosts() as hosts:
        yield hosts


def until(what: str, look: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, f"not in {seconds:.0f} s: {what}"
        time.sleep(0.1)


def planned(run: Path) -> set[str]:
    records = [json.loads(line) for path in run.glob("plan/*.jsonl") for line in path.read_text().splitlines()]
    return {f"{record['index']:06d}-{number:06d}" for record in records for number in range(record["num_units"])}


def committed(run: Path) -> set[str]:
    lines = [json.loads(line) for path in run.glob("manifest/*.jsonl") for line in path.read_text().splitlines()]
    return {unit for line in lines for *_, places in line.get("shards", []) for unit, _, _ in places}


def ray_on(hosts: Hosts) -> tuple[Host, Host]:
    """A head and two workers; returns the head and a worker."""
    head, first, second = (hosts.add_host(name) for name in ("head", "first", "second"))
    hosts.start_ray(head, cpus=0)
    until("a head", lambda: hosts.ray_nodes(head) == {"head"})
    for worker in (first, second):
        hosts.start_ray(worker, cpus=2, head=head)
    until("workers", lambda: hosts.ray_nodes(head) == {"head", "first", "second"})
    return head, second


def test_units_of_a_host_that_is_cut_off_are_done_by_others_long_before_ray_misses_it(tmp_path: Path, hosts: Hosts):
    head, cut = ray_on(hosts)
    recipe, run = scripted_recipe(tmp_path, ROWS, seconds_per_step=0.1), tmp_path / "run"
    driver = hosts.start(head, psi_command(recipe, f"{head.address}:6379", run), tmp_path / "driver.log")
    until("units", lambda: len(committed(run)) > 100)
    hosts.partition(cut)
    open_then = planned(run) - committed(run)
    until("the units that were open when the host was cut off", lambda: open_then <= committed(run))
    assert cut.name in hosts.ray_nodes(head)
    hosts.heal(cut)
    assert driver.wait(timeout=120) == 0, (tmp_path / "driver.log").read_text()
    assert check_run(run, RUN_ID, ROWS) == []
