"""The miniature's small model generates on three hosts, submitted from another; one is killed, one cut off for a while, one drained, one comes late."""

import json
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recipes.miniature.world import TASKS
from tests.chaos.checker import check_run
from tests.end_to_end.live_run import PSI, ROOT
from tests.hosts.hosts import Hosts, some_hosts, why_not

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

ROWS = 400
LEASE_SECONDS = 6.0
REACH_THE_DASHBOARD = "import socket; socket.create_connection(('head', 8265), timeout=1)"
OVERRIDES = [
    f"generation.accepted_rows={ROWS}", 'generation.arms=["psi"]', "generation.flows_per_unit=8",
    "pools.small.replicas=4", "pools.small.cpus=1", "pools.small.engine.max_num_seqs=8", "pools.small.full_within_seconds=5",
    f"cluster.lease_seconds={LEASE_SECONDS}", "cluster.drain_seconds=10",
]  # fmt: skip


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    with some_hosts({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PATH": path}) as hosts:
        yield hosts


def write_recipe(folder: Path) -> Path:
    """The miniature, with what the large model would find."""
    shutil.copytree(ROOT / "recipes/miniature", folder)
    lines = [
        {"task": task, "level": level, "kind": kind, "text": text}
        for task, rule in TASKS.items()
        for level, kind, text in (("task", "solve", "; ".join(rule)), ("instance", "generate", "len 5-7"))
    ]
    (folder / "principles.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def shards(run: Path) -> set[str]:
    """Names of the files whose rows are visible; a host that is cut off writes others."""
    lines = [json.loads(line) for path in run.glob("manifest/*.jsonl") for line in path.read_text().splitlines()]
    return {Path(file).name for line in lines for file, *_ in line.get("shards", [])}


def writers(shards: set[str]) -> set[str]:
    """Numbers of the replicas that wrote them. A host has room for one replica."""
    return {name.split("-")[2] for name in shards}


def test_a_submitted_run_has_exactly_its_rows_whatever_becomes_of_its_hosts(tmp_path: Path, hosts: Hosts) -> None:
    began = time.monotonic()
    desk, head, killed, cut, drained = (hosts.add_host(name) for name in ("desk", "head", "killed", "cut", "drained"))
    hosts.start_ray(head, cpus=0, jobs=True)
    while hosts.run(head, [sys.executable, "-c", REACH_THE_DASHBOARD]).returncode:
        time.sleep(0.2)
    nodes = {host.name: hosts.start_ray(host, cpus=1, head=head) for host in (killed, cut, drained)}
    run, log = tmp_path / "run", tmp_path / "submit.log"
    words = [
        "submit",
        str(write_recipe(tmp_path / "miniature")),
        f"--address=http://{head.address}:8265",
        "--stage=generate",
    ]
    places = [f"run.output={run}", f"run.scratch={tmp_path}/scratch", "principles.from=principles.jsonl"]
    psi = hosts.start(desk, [PSI, *words, *OVERRIDES, *places], log)

    def until(what: str, look: Callable[[], object]) -> None:
        while not look():
            assert psi.poll() is None, f"no {what}: {log.read_text()}"
            time.sleep(0.1)
        print(f"{time.monotonic() - began:6.1f} s {what}", flush=True)  # noqa: T201

    until("rows", lambda: shards(run))
    hosts.start_ray(hosts.add_host("late"), cpus=1, head=head)
    until("rows of three hosts", lambda: len(writers(shards(run))) >= 3)
    hosts.partition(cut)
    end, before = time.monotonic() + 2 * LEASE_SECONDS, shards(run)
    until("the end of the leases of a host that is cut off", lambda: time.monotonic() > end)
    until("rows of the two others", lambda: len(writers(shards(run) - before)) >= 2)
    hosts.heal(cut)
    hosts.kill(killed)
    before = shards(run)
    until(
        "rows of three hosts, of which one came back and one is late", lambda: len(writers(shards(run) - before)) >= 3
    )
    hosts.terminate(nodes["drained"])
    until("the end of a node that drains", lambda: nodes["drained"].poll() is not None)
    assert psi.wait(timeout=200) == 0, log.read_text()
    assert check_run(run, "miniature/psi", ROWS) == []
    assert "pool 'small': only" in log.read_text()
    print(f"{time.monotonic() - began:6.1f} s all rows", flush=True)  # noqa: T201
