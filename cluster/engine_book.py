"""The driver's book of how many engines each pool has: shown while it waits, said where they are too few for long, noted in the run folder."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cluster.engine_count import EngineCount
from cluster.metrics import SessionMetrics, newest_files, newest_line
from cluster.progress import Counters, ProgressLine, duration
from cluster.prometheus import Gauges, engine_series
from generation.storage import Store

STAGE = "engines"
"""Start of the names of its metrics files; the pool's name is next, so that where it stands is in the last of its own."""

_PUBLISH_SECONDS = 1.0
_NOTE_SECONDS = 10.0
"""So often at most a pool is noted in the run folder: thousands of engines join one by one."""


@dataclass(slots=True)
class _Known:
    """The last count of a pool and when it was taken; when one was last published, and when one was last noted, and which."""

    count: EngineCount
    at: float
    published_at: float = float("-inf")
    noted_at: float = float("-inf")
    noted: EngineCount | None = None


@dataclass(slots=True)
class _Sums:
    """A pool within one stage: most engines wanted, and ready at once; and for how long too few were ready, and overdue."""

    wanted: int = 0
    most_ready: int = 0
    short_seconds: float = 0.0
    overdue_seconds: float = 0.0


class EngineBook:
    """Notes of one driver. One thread uses it.

    Args:
        run: The run folder.
        name: The run's name.
        line: Where people are told.
    """

    def __init__(self, run: Store, name: str, line: ProgressLine) -> None:
        self._line = line
        self._began = time.monotonic()
        self._run, self._session = run, datetime.now(UTC)
        self._lines: dict[str, SessionMetrics] = {}
        self._gauges = Gauges(name)
        self._known: dict[str, _Known] = {}
        self._sums: dict[str, _Sums] = {}

    def note(self, pool: str, count: EngineCount) -> None:
        """Take what a pool has; called whenever it is looked at."""
        now = time.monotonic()
        known = self._known.setdefault(pool, _Known(count, now))
        before, seconds = known.count, now - known.at
        known.count, known.at = count, now
        self._add(pool, before, count, seconds)
        if bool(count.overdue) != bool(before.overdue):
            self._line.say(_said(pool, count))
        if now - known.published_at >= _PUBLISH_SECONDS:
            known.published_at = now
            self._gauges.publish(engine_series(pool, count))
        if now - known.noted_at >= _NOTE_SECONDS and replace(count, short_seconds=0.0) != known.noted:
            known.noted_at, known.noted = now, replace(count, short_seconds=0.0)
            self._write(pool, count)

    def wait(self, pool: str, count: EngineCount) -> None:
        """The same, where nothing can be done before one is ready."""
        self.note(pool, count)
        note = f"waiting for {duration(count.short_seconds)}"
        self._line.show(Counters(f"pool {pool}", count.ready, count.wanted, "engines", note=note))

    def release(self, pool: str) -> None:
        """It has none any more, and wants none."""
        if self._known.pop(pool, None) is not None:
            self._gauges.publish(engine_series(pool, EngineCount()))
            self._write(pool, EngineCount())

    def stage_facts(self) -> dict[str, dict[str, float]]:
        """By pool, what there was up to this moment since this was last asked."""
        now = time.monotonic()
        for pool, known in self._known.items():
            if pool in self._sums:
                self._add(pool, known.count, known.count, now - known.at)
            known.at = now
        sums, self._sums = self._sums, {}
        return {pool: asdict(each) for pool, each in sums.items()}

    def _add(self, pool: str, before: EngineCount, count: EngineCount, seconds: float) -> None:
        sums = self._sums.setdefault(pool, _Sums())
        sums.wanted, sums.most_ready = max(sums.wanted, count.wanted), max(sums.most_ready, count.ready)
        sums.short_seconds += seconds if before.ready < before.wanted else 0.0
        sums.overdue_seconds += seconds if before.overdue else 0.0

    def _write(self, pool: str, count: EngineCount) -> None:
        line: dict[str, Any] = {"time": datetime.now(UTC).isoformat(), "seconds": time.monotonic() - self._began}
        lines = self._lines.setdefault(pool, SessionMetrics(self._run, f"{STAGE}-{pool}", self._session))
        lines.book({**line, "pool": pool, **asdict(count)})
        lines.flush()


def noted_engines(run: Store) -> list[str]:
    """Where each pool of the newest driver stands, in a line; pools that want no engine are left out."""
    newest = newest_files(run, STAGE)
    session = max((of_pool.rpartition("-")[2] for of_pool in newest), default="")
    lines = [newest_line(run, file) for of_pool, file in newest.items() if of_pool.endswith(session)]
    return [_standing(line) for line in lines if line["wanted"]]


def _standing(line: Mapping[str, Any]) -> str:
    noted = datetime.fromisoformat(line["time"]).astimezone()
    since = noted - timedelta(seconds=line["short_seconds"])
    few = f", too few since {since:%m-%d %H:%M:%S}" if line["ready"] < line["wanted"] else ""
    return f"pool {line['pool']}: {line['ready']} of {line['wanted']} ready{few}"


def _said(pool: str, count: EngineCount) -> str:
    if not count.overdue:
        return f"pool '{pool}': all {count.wanted} engines are ready"
    work = "the work goes on with them" if count.ready else "it waits for the first"
    said = f"pool '{pool}': only {count.ready} of {count.wanted} engines are ready after {duration(count.short_seconds)}; {work}"
    return f"{said}. {count.without_node} have no node: has the cluster room for them?" if count.without_node else said
