"""What the coordinator can carry: scripted replicas lease and commit a million units, a restart reads them, and Ray clients lease.

The coordinator is the real one, with its ledger, group commit, manifest and snapshots, on an event loop whose clock is simulated: a write
to storage takes 100 ms of that clock, and its real cost is that of the same bytes on a local file. The replicas are a thousand times
faster than real ones, so that the coordinator is the limit; one in a thousand dies with a lease in hand. A pair is one lease of up to four
units, and one commit of them. All CPU time from the first lease to the last commit is counted: of the coordinator with its manifest and
snapshots, of the event loop, and of the replicas, which make the lease's beat and the shard's commit (about a fifth of it). It is that
of one core, and without the pickling and the sockets of Ray, which `ray_leases_per_second` has. A restart, and the memory that a
coordinator holds with all units committed, are those of a fresh process on the files that the run left.
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
from itertools import cycle
from pathlib import Path
from random import Random, randbytes
from typing import Any
from unittest.mock import patch

import psutil

import cluster.coordinator
from benchmarks.support.virtual_time import Grid, QuickStore, VirtualLoop
from cluster.coordinator import Coordinator
from cluster.coordinator_link import coordinator_actor
from cluster.ledger import MAX_UNITS_PER_LEASE
from cluster.protocol import Beat, Lease, ShardCommit, UnitRows
from generation.instances.plan import Bundle, Cell, PlanRecord, even_parts
from generation.spent import Spent
from generation.storage import Store

_BUNDLES = 64
_CELLS = 8
_UNITS_PER_RECORD = 500
_FLOWS_PER_UNIT = 128
_LEASE_SECONDS = 600.0
_UNIT_SECONDS = (0.02, 0.06)
_WRITE_SECONDS = 0.1
_DEATHS = 0.001
_WINDOW = 0.05
_COST_EVERY = 0.001
_GRID_SECONDS = 0.005
_DRAWS = 10_007
_THREADS = 8
_FIRST_ROWS = range(0, MAX_UNITS_PER_LEASE * _FLOWS_PER_UNIT, _FLOWS_PER_UNIT)
_LAST_ROWS = range(_FLOWS_PER_UNIT, (MAX_UNITS_PER_LEASE + 1) * _FLOWS_PER_UNIT, _FLOWS_PER_UNIT)
_DIGESTS = [randbytes(32).hex() for _ in range(1_000)]
_INSTANCES, _REJECTIONS = {"t": 100}, {"t/parse/no input tag": 28}
_TOKENS = {
    stage: {"requests": 128, "prompt_tokens": 9000, "cached_tokens": 8000, "output_tokens": 7000}
    for stage in ("draft", "answer")
}


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=1_000)
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=32, help="concurrent clients of a Ray actor; 0: none")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the Ray clients lease")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder, options.replicas, options.units)
        figures = run.play() | restarted(folder, options.units)
    if options.clients:
        figures["ray_leases_per_second"] = ray_leases(options.clients, options.seconds)
    ratio = {
        "ratio": figures["cost_ratio_1e6_to_1e4"],
        "ratio_to": "cost of a unit when 1 % of the units are committed",
    }
    size = {"benchmark": "coordinator", "replicas": options.replicas, "units": options.units}
    print(json.dumps(size | figures | ratio))


class Run:
    """Scripted replicas that generate all units of a plan."""

    def __init__(self, folder: str, replicas: int, units: int) -> None:
        self._folder = folder
        self._replicas = replicas
        self._units = units
        rng = Random(0)
        self._durations = cycle([rng.uniform(*_UNIT_SECONDS) for _ in range(_DRAWS)])
        self._fates = cycle([rng.random() < _DEATHS for _ in range(_DRAWS)])
        self._pairs = self._committed = self._deaths = 0
        self._costs = [(0, 0.0)]

    def play(self) -> dict[str, Any]:
        """Generate them; returns what it cost."""
        loop = VirtualLoop(_WRITE_SECONDS)
        with patch.object(cluster.coordinator, "Store", QuickStore):
            desk = Coordinator(self._folder, _LEASE_SECONDS, loop.time)
        loop.run_until_complete(desk.add_records(plan(self._units)))
        began = time.process_time()
        loop.run_until_complete(self._all(desk))
        seconds = time.process_time() - began
        progress = loop.run_until_complete(desk.progress())
        assert (progress.committed, progress.given_up) == (self._units, {}), progress
        loop.close()
        first, last = self._cost(0.01), self._cost(0.9)
        return {
            "pairs_per_second": round(self._pairs / seconds),
            "units_per_second": round(self._units / seconds),
            "deaths": self._deaths,
            "simulated_seconds": round(loop.time()),
            "cost_ratio_1e6_to_1e4": round(last / first, 3),
        }

    async def _all(self, desk: Coordinator) -> None:
        names = [f"small-{number}-{number:08x}" for number in range(self._replicas)]
        clock = Grid(_GRID_SECONDS)
        await asyncio.gather(*(self._replica(desk, clock, name) for name in names))

    async def _replica(self, desk: Coordinator, clock: Grid, name: str) -> None:
        shards, spent = 0, Spent()
        while self._committed < self._units:
            answer = await desk.lease(name, Beat(shards, "", (), spent))
            if answer.lease is None:
                await clock.after(answer.wait_seconds)
                continue
            await clock.after(next(self._durations) * len(answer.lease.units))
            if next(self._fates):
                self._deaths += 1
                await desk.forget(name, "killed", blame=False)
                continue
            shards += 1
            done = await desk.commit(name, answer.lease.lease_id, shard(name, shards, answer.lease))
            self._pairs += 1
            self._committed += len(done.committed)
            if self._committed >= self._costs[-1][0] + _COST_EVERY * self._units:
                self._costs.append((self._committed, time.process_time()))

    def _cost(self, share: float) -> float:
        """Seconds a unit over a window that begins once a share of the units is committed."""
        begin, end = (
            next(i for i, (n, _) in enumerate(self._costs) if n >= at * self._units) for at in (share, share + _WINDOW)
        )
        units, seconds = (self._costs[end][column] - self._costs[begin][column] for column in (0, 1))
        return seconds / units


def plan(units: int) -> list[PlanRecord]:
    """Records of so many units in all, of bundles that take turns."""
    bundles = [
        Bundle(f"b{number}", ("p",), f"{number} draft " * 50, f"{number} answer " * 50) for number in range(_BUNDLES)
    ]
    cells = tuple(Cell(f"c{number}", f"{number} text " * 10) for number in range(_CELLS))
    sizes = [min(_UNITS_PER_RECORD, units - start) for start in range(0, units, _UNITS_PER_RECORD)]
    return [
        PlanRecord(i, "t", 0, bundles[i % _BUNDLES], cells, n, _FLOWS_PER_UNIT, even_parts(n * _FLOWS_PER_UNIT, _CELLS))
        for i, n in enumerate(sizes)
    ]


def shard(replica: str, number: int, lease: Lease) -> ShardCommit:
    """A commit of all units of a lease."""
    rows = tuple(map(UnitRows, lease.units, _FIRST_ROWS, _LAST_ROWS))
    file = f"rows/round-0/shard-{replica}-{number:06d}.arrow"
    return ShardCommit(file, _DIGESTS[number % len(_DIGESTS)], 10_000, rows, _INSTANCES, _REJECTIONS, _TOKENS)


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
        desk = Coordinator(folder, _LEASE_SECONDS)
        await desk.lease("r", Beat())
        await desk.committed_prefix({"t": (0, "")})
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
        with tempfile.TemporaryDirectory() as folder, coordinator_actor(Store(folder), _LEASE_SECONDS) as link:
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
