"""The driver's book of what each process of a run used, stage by stage: lines of `energy/*.jsonl`, each file written once.

A line is a difference of two readings of one process. What it means in joules is worked out when it is read.
"""

import logging
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.energy import READING_SECONDS, ProcessMeter, Reading, read_folder
from cluster.metrics import SessionMetrics
from cluster.prometheus import GAUGE_SECONDS, Gauges, Series, energy_series
from cluster.repeating import repeating
from generation.energy import Used, Window
from generation.storage import Store, digest, json_lines

ENERGY_FOLDER = "energy"
BETWEEN = "between-stages"
_ANSWER_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Watched:
    """An actor whose method `reading` is called, and the last that it answered."""

    handle: Any
    role: str
    pool: str
    last: Reading | None = None
    pending: Any = None


class EnergyBook:
    """Books what processes use under the stage that is under way. Used by one thread; beside it, one of its own publishes.

    Args:
        run: The run folder.
        name: The run's name.
    """

    def __init__(self, run: Store, name: str) -> None:
        self._run = run
        self._gauges, self._publishing = Gauges(name), threading.Lock()
        self._used: dict[str, dict[tuple[str, str], Used]] = {}
        self._series: Series = {}
        self._began = time.monotonic()
        self._lines = SessionMetrics(run, "session", datetime.now(UTC), folder=ENERGY_FOLDER)
        self._stage = BETWEEN
        self._meter = ProcessMeter()
        self._driver = _Watched(None, "driver", "", last=self._meter.read())
        self._watched: dict[str, _Watched] = {}
        self._looked_at, self._reading = self._began, False

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Book what is used in the block under a stage of the run."""
        self._settle()
        self._stage = name
        try:
            with repeating(self._publish, GAUGE_SECONDS, "energy-gauges"):
                yield
        finally:
            self._settle()
            self._stage = BETWEEN

    def watch(
        self, name: str, handle: Any, *, role: str = "replica", pool: str = "", loaded: Reading | None = None
    ) -> None:
        """Read an actor from now on. What it has used so far, or by `loaded` where that is known, went into starting it."""
        watched = self._watched[name] = _Watched(handle, role, pool)
        if loaded is not None:
            self._take(watched, loaded, loading=True)
        else:
            self._collect([name], _ANSWER_SECONDS, loading=True)

    def release(self, *names: str) -> None:
        """Read actors for the last time."""
        self._collect([name for name in names if name in self._watched], _ANSWER_SECONDS)
        for name in names:
            self._watched.pop(name, None)
        self._flush()

    def look(self) -> None:
        """Have everything read every ten seconds, and book and write what has been answered. Waits for no answer; called while the driver waits."""
        now = time.monotonic()
        if now - self._looked_at >= READING_SECONDS:
            self._looked_at, self._reading = now, True
            for watched in self._watched.values():
                _ask(watched)
        pending = [name for name, watched in self._watched.items() if watched.pending is not None]
        self._collect(pending, 0)
        if self._reading and not any(watched.pending is not None for watched in self._watched.values()):
            self._reading = False
            self._take(self._driver, self._meter.read())
            self._flush()

    def add_processes(self, stage: str, folder: Path) -> None:
        """Book processes that kept readings of their own in `folder` (`cluster.energy.metered`). Doing it again changes nothing."""
        readings = read_folder(folder)
        lines = [self._line(stage, _Watched(None, "rank", ""), None, reading) for reading in readings]
        if lines:
            name = f"{stage}-{digest(str(folder))[:8]}.jsonl"
            self._run.replace(f"{ENERGY_FOLDER}/{name}", json_lines(lines))
            self._used.pop(name, None)
            self._add(name, lines)
            self._publish()

    def _settle(self) -> None:
        """Book everything up to now."""
        for watched in self._watched.values():
            watched.pending = None
        self._collect(list(self._watched), _ANSWER_SECONDS)
        self._take(self._driver, self._meter.read())
        self._flush()

    def _collect(self, names: list[str], seconds: float, *, loading: bool = False) -> None:
        """Book the answers of some actors that come in time, having asked those that were not."""
        if not names:
            return
        import ray
        from ray.exceptions import RayActorError

        for name in names:
            _ask(self._watched[name])
        by_reference = {self._watched[name].pending: name for name in names}
        done, _ = ray.wait(list(by_reference), num_returns=len(by_reference), timeout=seconds)
        for reference in done:
            name = by_reference[reference]
            self._watched[name].pending = None
            try:
                self._take(self._watched[name], ray.get(reference), loading=loading)
            except RayActorError:  # it is dead; what it used since it was last read is not known
                del self._watched[name]

    def _take(self, watched: _Watched, reading: Reading, *, loading: bool = False) -> None:
        same = watched.last is not None and watched.last.process == reading.process
        line = self._line(self._stage, watched, watched.last if same else None, reading)
        watched.last = reading
        if reading.unmetered and not same:
            _log.warning("energy of the GPUs of %s is not measured: %s", reading.process, reading.unmetered)
        self._lines.book({**line, "loading": loading})
        self._add("session", [line])

    def _add(self, book: str, lines: list[dict[str, Any]]) -> None:
        """Add lines to what has been booked by stage and role, in the session or in a file of its own."""
        sums = self._used.setdefault(book, {})
        for line in lines:
            key = line["stage"], line["role"]
            sums[key] = sums.get(key, Used()) + _window(line).used
            whole = sum((each[key] for each in self._used.values() if key in each), start=Used())
            others = {labels: value for labels, value in self._series.items() if labels[1:3] != key}
            self._series = others | energy_series(*key, whole)

    def _flush(self) -> None:
        self._lines.flush()
        self._publish()

    def _publish(self) -> None:
        with self._publishing:  # what is set last is then the newest
            self._gauges.publish(self._series)

    def _line(self, stage: str, watched: _Watched, before: Reading | None, now: Reading) -> dict[str, Any]:
        first = before or Reading(now.process, 0, 0)
        wall_ms = now.wall_ms - first.wall_ms
        return {
            "time": datetime.now(UTC).isoformat(),
            "seconds": round(time.monotonic() - self._began, 3),
            "stage": stage,
            "process": now.process,
            "role": watched.role,
            "pool": watched.pool,
            "wall_ms": wall_ms,
            "core_ms": now.core_ms - first.core_ms,
            "measured_mj": now.measured_mj - first.measured_mj,
            "estimated_mj": now.estimated_mj - first.estimated_mj,
            "unmetered": now.unmetered,
            "idle_mj": now.idle_mw * wall_ms // 1000,
            "tokens": _gains(first.tokens, now.tokens),
            "unfinished": now.unfinished,
        }


def _ask(watched: _Watched) -> None:
    if watched.pending is None:
        watched.pending = watched.handle.reading.remote()


def _gains(before: Mapping[str, Mapping[str, int]], now: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """What the counts of each request stage rose by, where they rose."""
    rises = {
        stage: {name: count - before.get(stage, {}).get(name, 0) for name, count in counts.items()}
        for stage, counts in now.items()
    }
    return {stage: rise for stage, rise in rises.items() if any(rise.values())}


def read_windows(run: Store) -> list[Window]:
    """All windows of a run, those of a process in order."""
    names = [name for name in run.names(ENERGY_FOLDER) if name.endswith(".jsonl")]
    return [_window(line) for name in names for line in run.read_lines(f"{ENERGY_FOLDER}/{name}")]


def _window(line: Mapping[str, Any]) -> Window:
    used = Used(
        line["wall_ms"], line["core_ms"], line["measured_mj"], line["estimated_mj"], unmetered=bool(line["unmetered"])
    )
    return Window(
        stage=line["stage"],
        process=line["process"],
        role=line["role"],
        pool=line["pool"],
        used=used,
        idle_mj=line["idle_mj"],
        tokens=line["tokens"],
        unfinished=line["unfinished"],
        loading=line.get("loading", False),
    )
