"""A real coordinator on a simulated clock, and scripted replicas that lease and commit all units of a plan."""

import asyncio
import time
from itertools import cycle
from pathlib import Path
from random import Random, randbytes
from unittest.mock import patch

import cluster.coordinator
from benchmarks.support.virtual_time import Grid, QuickStore, VirtualLoop
from cluster.coordinator import Coordinator
from cluster.ledger import MAX_UNITS_PER_LEASE
from cluster.protocol import Beat, Lease
from generation.instances.plan import Bundle, Cell, PlanRecord, even_parts
from generation.manifest_state import Shard
from generation.spent import Spent

LEASE_SECONDS = 600.0
_BUNDLES = 64
_CELLS = 8
_UNITS_PER_RECORD = 500
_FLOWS_PER_UNIT = 128
_UNIT_SECONDS = (0.02, 0.06)
_WRITE_SECONDS = 0.1
_DEATHS = 0.001
_GRID_SECONDS = 0.005
_DRAWS = 10_007
_FIRST_ROWS = range(0, MAX_UNITS_PER_LEASE * _FLOWS_PER_UNIT, _FLOWS_PER_UNIT)
_LAST_ROWS = range(_FLOWS_PER_UNIT, (MAX_UNITS_PER_LEASE + 1) * _FLOWS_PER_UNIT, _FLOWS_PER_UNIT)
_DIGESTS = [randbytes(32).hex() for _ in range(1_000)]
_INSTANCES, _REJECTIONS = {"t": 100}, {"t/parse/no input tag": 28}
_TOKENS = {
    stage: {"requests": 128, "prompt_tokens": 9000, "cached_tokens": 8000, "output_tokens": 7000}
    for stage in ("draft", "answer")
}


class ScriptedRun:
    """Replicas that generate all units of a plan, as far as they are let.

    Args:
        folder: Of the run.
        replicas: How many.
        units: In its plan.

    Attributes:
        pairs: Leases that were committed.
        committed: Units.
        deaths: Replicas that died with a lease in hand.
        seconds: CPU time that `advance` took in all.
    """

    def __init__(self, folder: Path, replicas: int, units: int) -> None:
        self._units = units
        self._loop = VirtualLoop(_WRITE_SECONDS)
        with patch.object(cluster.coordinator, "Store", QuickStore):
            self._desk = Coordinator(str(folder), LEASE_SECONDS, self._loop.time)
        self._loop.run_until_complete(self._desk.add_records(plan(units)))
        rng = Random(0)
        self._durations = cycle([rng.uniform(*_UNIT_SECONDS) for _ in range(_DRAWS)])
        self._fates = cycle([rng.random() < _DEATHS for _ in range(_DRAWS)])
        clock = Grid(_GRID_SECONDS)
        names = [f"small-{number}-{number:08x}" for number in range(replicas)]
        self._replicas = [self._loop.create_task(self._replica(clock, name)) for name in names]
        self._goal, self._reached = 0, self._loop.create_future()
        self.pairs = self.committed = self.deaths = 0
        self.seconds = 0.0

    @property
    def simulated_seconds(self) -> float:
        """What its clock says."""
        return self._loop.time()

    def advance(self, share: float) -> float:
        """Go on until so large a share of the units is committed; returns the CPU time that it took."""
        began = time.process_time()
        self._goal, self._reached = round(share * self._units), self._loop.create_future()
        if self.committed < self._goal:
            self._loop.run_until_complete(self._reached)
        seconds = time.process_time() - began
        self.seconds += seconds
        return seconds

    def close(self) -> None:
        """Stop all."""
        progress = self._loop.run_until_complete(self._desk.progress())
        assert (progress.committed, progress.given_up) == (self.committed, {}), progress
        pending = asyncio.all_tasks(self._loop)
        for task in pending:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self._loop.close()

    async def _replica(self, clock: Grid, name: str) -> None:
        desk, shards, spent = self._desk, 0, Spent()
        while self.committed < self._units:
            answer = await desk.lease(name, Beat(shards, "", (), spent))
            if answer.lease is None:
                await clock.after(answer.wait_seconds)
                continue
            await clock.after(next(self._durations) * len(answer.lease.units))
            if next(self._fates):
                self.deaths += 1
                await desk.forget(name, "killed", blame=False)
                continue
            shards += 1
            done = await desk.commit(name, answer.lease.lease_id, _shard(name, shards, answer.lease))
            self.pairs += 1
            self.committed += len(done.committed)
            if self.committed >= self._goal and not self._reached.done():
                self._reached.set_result(None)


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


def _shard(replica: str, number: int, lease: Lease) -> Shard:
    """A commit of all units of a lease."""
    rows = tuple(zip(lease.units, _FIRST_ROWS, _LAST_ROWS, strict=False))
    file = f"rows/round-0/shard-{replica}-{number:06d}.arrow"
    return Shard(file, _DIGESTS[number % len(_DIGESTS)], 10_000, rows, _INSTANCES, _REJECTIONS, _TOKENS)
