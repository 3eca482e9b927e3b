"""A run of the `psi` command on a cluster of several nodes, while faults happen to it."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from tests.chaos.disk import Disk
from tests.chaos.faults import Fault
from tests.chaos.nodes import ENVIRONMENT, Nodes, signal_if_there
from tests.chaos.recipes import LEASE_SECONDS
from tests.end_to_end.live_run import ROOT

STALL_SECONDS = 240.0
"""Without a committed unit for so long, the run hangs."""
DISK_FULL_SECONDS = 4.0
NODE_AWAY_SECONDS = 5.0
LOCKED, STORAGE = 5, 4
_LOOK_SECONDS = 0.02


@dataclass
class Story:
    """One run, its faults, and what came of it.

    Attributes:
        nodes: Where it runs.
        folder: Its run folder.
        command: What starts its driver, each time the same.
        faults: What shall happen, in order.
        disk: Where its folder lies, if that can be filled.
        done: Faults that have happened, by kind.
        spread: Replicas by node, where most were seen at once.
        refused: Second drivers that ended as they should.
        restarts: Drivers that ended because they could not write.
        seconds: How long it took.
    """

    nodes: Nodes
    folder: Path
    command: list[str]
    faults: list[Fault]
    disk: Disk | None = None
    done: Counter[str] = field(default_factory=Counter)
    spread: list[int] = field(default_factory=list)
    refused: int = 0
    restarts: int = 0
    seconds: float = 0.0
    _driver: subprocess.Popen[bytes] | None = None
    _drivers: int = 0
    _segments: set[str] = field(default_factory=set)
    _units: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    _later: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    _full: bool = False

    @property
    def history(self) -> Path:
        """Where copies of all segments are kept: snapshots make them superfluous, and the checker wants them."""
        return self.folder.parent / "segments"

    @property
    def units(self) -> int:
        """Units that are visible."""
        return len(self._units)

    def tell(self) -> int:
        """Run to the end; returns the code of the last driver."""
        self.history.mkdir()
        waiting = list(self.faults)
        self._start_driver()
        moved, began = time.monotonic(), time.monotonic()
        try:
            while (code := self._ended()) is None:
                before = len(self._units)
                self._look()
                moved = time.monotonic() if len(self._units) > before else moved
                assert time.monotonic() - moved < STALL_SECONDS, f"no unit for {STALL_SECONDS:.0f} s; {self.said()}"
                if waiting and len(self._units) >= waiting[0].after and self._happen(waiting[0]):
                    fault = waiting.pop(0)
                    self.done[fault.kind] += 1
                    print(f"{time.monotonic() - began:6.1f} s {len(self._units):6} units: {fault.kind}", flush=True)  # noqa: T201
                self._undo(time.monotonic())
                time.sleep(_LOOK_SECONDS)
            self._look()
        finally:
            self.seconds = time.monotonic() - began
            self._undo(float("inf"))
            if self._driver is not None and self._driver.poll() is None:
                self._driver.kill()
                self._driver.wait()
        assert not waiting, f"the run ended with {code} before {len(waiting)} of its faults: {self.said()}"
        return code

    def summary(self) -> str:
        """How it went, in a few lines."""
        rows = [pa.ipc.open_file(path.read_bytes()).read_all().num_rows for path in self.folder.glob("rows/*/*.arrow")]
        visible = {unit: end - start for unit, start, end in self._units.values()}
        vain = 1 - sum(visible.values()) / max(1, sum(rows))
        faults = "\n".join(f"  {count:5}  {kind}" for kind, count in sorted(self.done.items()))
        return (
            f"{faults}\n  {self.done.total():5}  faults over {len(self._units):,} units in {self.seconds:.0f} s\n"
            f"  {self.spread!s:>5}  replicas on as many nodes\n"
            f"  {self._drivers:5}  drivers, of which {self.restarts} ended because they could not write\n"
            f"  {vain:5.1%}  of the rows that were written are visible in another shard"
        )

    def said(self) -> str:
        """The end of what each driver has said."""
        logs = sorted(self.folder.parent.glob("driver-*.log"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in logs)

    def _start_driver(self) -> None:
        log = self.folder.parent / f"driver-{self._drivers:02d}.log"
        self._drivers += 1
        with log.open("wb") as stream:
            environment = {**os.environ, **ENVIRONMENT}
            self._driver = subprocess.Popen(self.command, stdout=stream, stderr=stream, cwd=ROOT, env=environment)

    def _ended(self) -> int | None:
        """The code of a driver that ended by itself; one that could not write is started again once there is room."""
        assert self._driver is not None
        code = self._driver.poll()
        if code == STORAGE and self.done["disk full"]:
            if not self._full:
                self.restarts += 1
                self._start_driver()
            return None
        return code

    def _look(self) -> None:
        """Units that have been committed since; segments never change."""
        try:
            names = {entry.name for entry in os.scandir(self.folder / "manifest") if entry.name[0].isdigit()}
        except FileNotFoundError:
            return
        for name in sorted(names - self._segments):
            self._segments.add(name)
            content = (self.folder / "manifest" / name).read_text()
            (self.history / name).write_text(content)
            lines = [json.loads(line) for line in content.splitlines()]
            shards = [shard for line in lines for shard in line.get("shards", [])]
            self._units |= {place[0]: tuple(place) for *_, places in shards for place in places}

    def _undo(self, now: float) -> None:
        due = [undo for when, undo in self._later if when <= now]
        self._later = [(when, undo) for when, undo in self._later if when > now]
        for undo in due:
            undo()

    def _in(self, seconds: float, undo: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + seconds, undo))

    def _happen(self, fault: Fault) -> bool:
        """Let a fault happen; False where it cannot yet."""
        self.spread = max(self.spread, self.nodes.spread("ray::Replica"), key=sum)
        return {
            "replica killed": self._kill_replica,
            "engine killed": self._kill_engine,
            "replica stopped past its lease": self._stop_replica,
            "coordinator killed": self._kill_coordinator,
            "commit answer lost": self._lose_an_answer,
            "node killed": self._kill_node,
            "disk full": self._fill_disk,
            "driver killed": self._kill_driver,
            "second driver": self._start_second_driver,
        }[fault.kind](fault)

    def _kill_replica(self, fault: Fault) -> bool:
        return self._signal(fault, "ray::Replica", signal.SIGKILL) is not None

    def _kill_engine(self, fault: Fault) -> bool:
        """vLLM's engine core is a process of its own below the replica, where the recipe says so."""
        return self._signal(fault, "VLLM::EngineCore", signal.SIGKILL) is not None

    def _kill_coordinator(self, fault: Fault) -> bool:
        return self._signal(fault, "ray::Coordinator", signal.SIGKILL) is not None

    def _stop_replica(self, fault: Fault) -> bool:
        pid = self._signal(fault, "ray::Replica", signal.SIGSTOP)
        if pid is not None:
            self._in(LEASE_SECONDS * 2, lambda: signal_if_there(pid, signal.SIGCONT))
        return pid is not None

    def _signal(self, fault: Fault, title: str, number: signal.Signals) -> int | None:
        victims = self.nodes.titled(title)
        pid = fault.pick(victims) if victims else None
        return pid if pid is not None and signal_if_there(pid, number) else None

    def _lose_an_answer(self, fault: Fault) -> bool:
        """Kill the coordinator right after it has written a segment: it was in the act of saying so."""
        victims = self.nodes.titled("ray::Coordinator")
        manifest = self.folder / "manifest"
        if not victims or not manifest.is_dir():
            return False
        before, end = len(os.listdir(manifest)), time.monotonic() + 5  # noqa: PTH208 - a list of thousands, many times
        while len(os.listdir(manifest)) == before:  # noqa: PTH208
            if time.monotonic() > end:
                return False
        return signal_if_there(victims[0], signal.SIGKILL)

    def _kill_node(self, fault: Fault) -> bool:
        if len(self.nodes.workers) < 2:
            return False
        self.nodes.kill_worker(int(fault.choice * len(self.nodes.workers)))
        self._in(NODE_AWAY_SECONDS, self._add_worker)
        return True

    def _add_worker(self) -> None:
        with self._driver_at_rest():
            self.nodes.add_worker()

    @contextmanager
    def _driver_at_rest(self) -> Iterator[None]:
        """Stop the driver while the block runs: a slow machine may take as long over it as the run has left."""
        assert self._driver is not None
        driver = self._driver
        driver.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            driver.send_signal(signal.SIGCONT)

    def _fill_disk(self, fault: Fault) -> bool:
        assert self.disk is not None
        self.disk.fill()
        self._full = True
        self._in(DISK_FULL_SECONDS, self._free_disk)
        return True

    def _free_disk(self) -> None:
        assert self.disk is not None
        self.disk.free()
        self._full = False

    def _kill_driver(self, fault: Fault) -> bool:
        assert self._driver is not None
        if self._full or self._driver.poll() is not None:
            return False
        self._driver.kill()
        self._driver.wait()
        self._start_driver()
        return True

    def _start_second_driver(self, fault: Fault) -> bool:
        """Another driver on the same run is refused, and told so, while the first lives."""
        assert self._driver is not None
        if self._full or not self.nodes.titled("ray::Coordinator"):
            return False
        environment = {**os.environ, **ENVIRONMENT}
        with self._driver_at_rest():
            other = subprocess.run(self.command, check=False, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert other.returncode == LOCKED, f"a second driver ended with {other.returncode}: {other.stderr}"
        self.refused += 1
        return True
