"""One driver per run: an exclusive claim in the run folder, kept alive by a heartbeat.

The claim only keeps two users out of each other's way. What makes a second writer harmless is the manifest's incarnation.
"""

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from generation.errors import RunLockedError, StorageError
from generation.storage import Store, json_bytes

BEAT_SECONDS = 5.0
DEAD_AFTER_SECONDS = 30.0
WATCH_SECONDS = 15.0
"""How long a heartbeat that looks old is watched before its driver is succeeded: clocks of two hosts may differ by any time."""

_FOLDER = "drivers"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """Who drives a run.

    Attributes:
        host: Host name.
        pid: Process id there.
        process_start: When that process started, as its system tells it: tells it from a later one with the same id.
        since: When the claim was made, ISO 8601 in UTC.
        boot: `boot_id` there: elsewhere, also on another host or in another container of the same name, the process id means nothing.
    """

    host: str
    pid: int
    process_start: str
    since: str
    boot: str = ""


class DriverLock:
    """Holds a run for this process while the `with` block runs.

    A driver that was killed is succeeded at once on its own host, and elsewhere once its heartbeat is 30 seconds old and has not
    changed for another 15.

    Raises:
        RunLockedError: On entry: another live driver has the run; the message names it.
        StorageError: On entry: the run folder cannot be written.
    """

    def __init__(
        self,
        store: Store,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._now = now
        self._sleep = sleep
        self._number = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="driver-heartbeat", daemon=True)

    def __enter__(self) -> "DriverLock":
        self._number = self._claim()
        self._beat(self._store, released=False)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self._beat(self._store.patient(BEAT_SECONDS), released=True)
        except (
            StorageError
        ) as problem:  # what ended the block matters more, and successors find that the heartbeat is old
            _log.warning("the run was not released: %s", problem)

    def confirm(self) -> None:
        """Make sure that the run is still this process's: one that was suspended for long has been succeeded meanwhile.

        Raises:
            RunLockedError: It was.
            StorageError: The run folder cannot be read.
        """
        if self._highest() > self._number:
            raise RunLockedError(
                f"{self._store.uri}: another driver has taken this run over while this one stood still; let it finish,"
                " or stop it and start again"
            )

    def _claim(self) -> int:
        pid = os.getpid()
        while True:
            number = self._highest()
            if number:
                self._refuse_if_alive(number)
            claim = Claim(socket.gethostname(), pid, process_start(pid) or "", self._now().isoformat(), boot_id())
            try:
                self._store.write_new(_claim_file(number + 1), json_bytes(asdict(claim)))
            except FileExistsError:
                continue
            return number + 1

    def _highest(self) -> int:
        matches = (re.fullmatch(r"(\d+)\.json", name) for name in self._store.names(_FOLDER))
        return max((int(match[1]) for match in matches if match), default=0)

    def _refuse_if_alive(self, number: int) -> None:
        claim = Claim(**self._store.read_json(_claim_file(number)))
        beat = self._last_beat(number)
        if beat.get("released"):
            return
        if (claim.host, claim.boot) == (socket.gethostname(), boot_id()):
            alive = process_start(claim.pid) == claim.process_start
        else:
            alive = self._is_beating(number, beat, datetime.fromisoformat(beat.get("time", claim.since)))
        if alive:
            raise RunLockedError(
                f"{self._store.uri}: driven by process {claim.pid} on {claim.host} since {claim.since};"
                " wait for it, stop it, or choose another run.output"
            )

    def _is_beating(self, number: int, beat: dict[str, Any], last: datetime) -> bool:
        if abs((self._now() - last).total_seconds()) <= DEAD_AFTER_SECONDS:
            return True
        self._sleep(WATCH_SECONDS)
        later = self._last_beat(number)
        return later != beat and not later["released"]

    def _last_beat(self, number: int) -> dict[str, Any]:
        return self._store.read_json(_beat_file(number)) if self._store.exists(_beat_file(number)) else {}

    def _keep_beating(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with suppress(StorageError):  # one attempt: the next beat tells more than a late one
                self._beat(self._store.patient(0), released=False)

    def _beat(self, store: Store, *, released: bool) -> None:
        beat = {"time": self._now().isoformat(), "released": released}
        store.replace(_beat_file(self._number), json_bytes(beat))


def boot_id() -> str:
    """This boot of this machine and the process namespace in it; empty where the system does not tell."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def process_start(pid: int) -> str | None:
    """When a process of this host started, in its system's own form; None where it is gone, empty where that cannot be told."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    if not Path("/proc/self/stat").exists():
        return ""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Fields follow the command, which is in parentheses and may hold anything: first the state, 19 fields later the start time.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def _claim_file(number: int) -> str:
    return f"{_FOLDER}/{number:06d}.json"


def _beat_file(number: int) -> str:
    return f"{_FOLDER}/{number:06d}.beat"
