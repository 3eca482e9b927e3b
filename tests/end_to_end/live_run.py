"""A run of the `psi` command as its own processes, to look at and to kill."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cluster.lock import process_start

ROOT = Path(__file__).parents[2]
PSI = str(Path(sys.executable).with_name("psi"))
TIMEOUT_SECONDS = 600.0
END_SECONDS = 60.0
RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""They hold no device, and spend the minute after their cluster was killed on reporting that to it, in vain."""

Found = TypeVar("Found")


@dataclass
class LiveRun:
    """One command on one run folder, started as often as one likes.

    Attributes:
        command: What is started, each time the same.
        folder: The run folder.
        logs: What each start has said.
        known: Process id to start time of each process that a start has had below it.
    """

    command: list[str]
    folder: Path
    logs: list[Path] = field(default_factory=list)
    known: dict[int, str] = field(default_factory=dict)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command."""
        log = self.folder.with_name(f"{self.folder.name}-{len(self.logs)}.log")
        self.logs.append(log)
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as stream:
            driver = subprocess.Popen(
                self.command, stdout=stream, stderr=stream, cwd=ROOT, env=environment, start_new_session=True
            )
        self.known[driver.pid] = process_start(driver.pid) or ""
        return driver

    def below(self, driver: subprocess.Popen[bytes]) -> dict[int, str]:
        """Process id to title of every process that a driver has started, directly or not."""
        found = dict(descendants(driver.pid))
        self.known |= {pid: start for pid in found if (start := process_start(pid))}
        return found

    def titled(self, driver: subprocess.Popen[bytes], title: str) -> list[int]:
        """Ids of the driver's processes whose title begins so, as Ray names its actors: `ray::Replica`."""
        return sorted(pid for pid, name in self.below(driver).items() if name.startswith(title))

    def wait(self, driver: subprocess.Popen[bytes], what: str, look: Callable[[], Found | None]) -> Found:
        """Look until there is something to see; a driver that ends before is a failure of the test."""
        until = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < until:
            if found := look():
                return found
            assert driver.poll() is None, f"no {what}, the driver ended with {driver.returncode}:\n{self.said()}"
            time.sleep(0.01)
        raise AssertionError(f"no {what} in {TIMEOUT_SECONDS:.0f} s:\n{self.said()}")

    def finish(self, driver: subprocess.Popen[bytes]) -> int:
        """Wait for a driver's own end."""
        return driver.wait(timeout=TIMEOUT_SECONDS)

    def kill(self, driver: subprocess.Popen[bytes]) -> list[str]:
        """Kill a driver with -9; returns the titles of what outlives it."""
        self.below(driver)
        driver.kill()
        driver.wait()
        return self.outliving()

    def outliving(self) -> list[str]:
        """Titles of the processes that do not end though their driver has; Ray's agents are given the time that they take."""
        until = time.monotonic() + END_SECONDS
        while True:
            titles = [title for pid in self.alive() if (title := title_of(pid))]
            left = [title for title in titles if not title.startswith(RAY_AGENTS)]
            if not left or time.monotonic() > until:
                return left
            time.sleep(0.1)

    def alive(self) -> list[int]:
        """Known processes that have not ended."""
        return [pid for pid, start in self.known.items() if process_start(pid) == start]

    def said(self, number: int = -1) -> str:
        """The end of what a start has said."""
        return self.logs[number].read_text(errors="replace")[-4000:]


@contextmanager
def live_run(recipe: Path, overrides: list[str], folder: Path, command: str = "run") -> Iterator[LiveRun]:
    """A run of a recipe; nothing that it started is left alive afterwards."""
    run = LiveRun([PSI, command, str(recipe), *overrides, f"run.output={folder}"], folder)
    try:
        yield run
    finally:
        for pid in run.alive():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """(process id, title) of everything below a process."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    waiting = children.get(pid, [])
    while waiting:
        child = waiting.pop()
        waiting += children.get(child, [])
        yield child, title_of(child)


def title_of(pid: int) -> str:
    """A process's command line, which Ray replaces by a title; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
