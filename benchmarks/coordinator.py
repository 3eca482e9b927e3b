"""What the coordinator can carry: scripted replicas lease and commit a million units, a restart reads them, and Ray clients lease.

The coordinator is the real one, with its ledger, group commit, manifest and snapshots, on an event loop whose clock is simulated: a write
to storage takes 100 ms of that clock, and its real cost is that of the same bytes on a local file. The replicas are a thousand times
faster than real ones, so that the coordinator is the limit; one in a thousand dies with a lease in hand. A pair is one lease of up to four
units, and one commit of them. All CPU time from the first lease to the last commit is counted: of the coordinator with its manifest and
snapshots, of the event loop that wakes the replicas, and of these, which make the lease's beat and the shard's commit: with a coordinator
that knows its answers beforehand, loop and replicas alone take about a third as long. It is that of one core, and without the pickling and
the sockets of Ray, which `ray_leases_per_second` has. What a unit costs late in the run is compared with what it costs early, by turns: in
the same seconds, as the speed of a shared machine changes from one to the next. A restart, and the memory that a coordinator holds with all
units committed, are those of a fresh process on the files that the run left.
"""

import argparse
import asyncio
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import psutil

from benchmarks.support.scripted_run import LEASE_SECONDS, ScriptedRun, plan
from cluster.coordinator import Coordinator
from cluster.coordinator_link import coordinator_actor
from cluster.protocol import Beat, Tick
from generation.storage import Store

_EARLY, _LATE = 0.01, 0.75
_TURN, _TURNS = 0.01, 20
_THREADS = 8


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=1_000)
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=32, help="concurrent clients of a Ray actor; 0: none")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the Ray clients lease")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = play(Path(folder), options.replicas, options.units) | restarted(f"{folder}/run", options.units)
    if options.clients:
        figures["ray_leases_per_second"] = ray_leases(options.clients, options.seconds)
    ratio = {
        "ratio": figures["cost_ratio_1e6_to_1e4"],
        "ratio_to": "cost of a unit when 1 to 21 % of the units are committed; it: when 75 to 95 % are",
    }
    size = {"benchmark": "coordinator", "replicas": options.replicas, "units": options.units}
    print(json.dumps(size | figures | ratio))


def play(folder: Path, replicas: int, units: int) -> dict[str, Any]:
    """Generate all units of a plan, and beside the last of them a few of the first of another run, which cost about as much."""
    late, early = ScriptedRun(folder / "run", replicas, units), ScriptedRun(folder / "early", replicas, units)
    late.advance(_LATE)
    early.advance(_EARLY)
    costs = {late: 0.0, early: 0.0}
    done = {run: run.committed for run in costs}
    for turn in range(1, _TURNS + 1):  # by turns, so that both meet the same moods of the machine
        for run, share in ((early, _EARLY), (late, _LATE)):
            costs[run] += run.advance(share + turn * _TURN)
    cost = {run: seconds / (run.committed - done[run]) for run, seconds in costs.items()}
    late.advance(1.0)
    early.close()
    late.close()
    return {
        "pairs_per_second": round(late.pairs / late.seconds),
        "units_per_second": round(units / late.seconds),
        "deaths": late.deaths,
        "simulated_seconds": round(late.simulated_seconds),
        "cost_ratio_1e6_to_1e4": round(cost[late] / cost[early], 3),
    }


def restarted(folder: str, units: int) -> dict[str, float]:
    """What a fresh process needs until its coordinator answers, once its modules are imported: seconds, and bytes a unit.

    `bytes_per_unit` is what the coordinator has allocated and holds; `rss_per_unit` what the process has grown by, with the buffers,
    threads and libraries of its first reads, whatever the number of units.
    """
    command = [
        sys.executable,
        "-c",
        "import sys; from benchmarks.coordinator import restart; restart(sys.argv[1])",
        folder,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    seconds, resident, held = json.loads(done.stdout)
    bytes_per_unit = {"bytes_per_unit": round(held / units, 1), "rss_per_unit": round(resident / units, 1)}
    return {"restart_seconds": round(seconds, 2)} | bytes_per_unit


def restart(folder: str) -> None:
    """Start a coordinator on a run, have it lease, look at its prefix, and print seconds and bytes; then one whose memory is traced."""

    async def answers() -> Coordinator:
        desk = Coordinator(folder, LEASE_SECONDS)
        await desk.lease("r", Beat())
        await desk.tick(Tick({"t": (0, "")}))
        return desk

    before, began = resident_bytes(), time.perf_counter()
    desk = asyncio.run(answers())
    seconds = time.perf_counter() - began
    resident = resident_bytes() - before
    del desk
    tracemalloc.start()
    desk = asyncio.run(answers())
    gc.collect()
    print(json.dumps([seconds, resident, tracemalloc.get_traced_memory()[0]]))
    del desk


def resident_bytes() -> int:
    """Of this process, without what the allocator keeps for later."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss


def ray_leases(clients: int, seconds: float) -> int:
    """Leases per second that a coordinator hands out as a Ray actor, to so many clients that ask at once."""
    import ray

    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    variables = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
    try:
        with tempfile.TemporaryDirectory() as folder, coordinator_actor(Store(folder), LEASE_SECONDS) as link:
            link.call("add_records", plan(1_000_000))
            actor: Any = ray.remote(Clients)
            processes = [actor.options(num_cpus=0).remote(link.handle) for _ in range(max(1, clients // _THREADS))]
            ray.get([process.lease.remote(1, 0.1) for process in processes])
            counts: list[int] = ray.get(
                [process.lease.remote(min(clients, _THREADS), seconds) for process in processes]
            )
        return round(sum(counts) / seconds)
    finally:
        ray.shutdown()


class Clients:
    """Some clients in one process, each a thread that asks for lease after lease."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    def lease(self, threads: int, seconds: float) -> int:
        """Ask for so long; returns how many leases came."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(lambda number: self._one(f"{os.getpid()}-{number}", seconds), range(threads)))

    def _one(self, name: str, seconds: float) -> int:
        import ray

        until, leases = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            answer: Any = ray.get(self._coordinator.lease.remote(name, Beat(steps=leases)))
            leases += answer.lease is not None
        return leases


if __name__ == "__main__":
    main()
