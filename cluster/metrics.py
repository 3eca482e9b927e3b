"""What a driver's session notes, as JSONL segments, each written once: `metrics/<stage>-<started>-<number>.jsonl`."""

from datetime import UTC, datetime
from typing import Any

from generation.storage import Store, json_lines

FOLDER = "metrics"
SEGMENT_SECONDS = 10.0


class SessionMetrics:
    """Gathers lines and writes them every ten seconds, so that a killed driver loses no more than that.

    Args:
        store: The arm's run folder.
        stage: Start of the file names.
        started: Names the session; no two sessions start in the same microsecond.
        folder: Where the files go.
    """

    def __init__(self, store: Store, stage: str, started: datetime, folder: str = FOLDER) -> None:
        self._store = store
        self._prefix = f"{folder}/{stage}-{started.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}"
        self._segment = 0
        self._lines: list[dict[str, Any]] = []
        self._written_at = 0.0

    def book(self, line: dict[str, Any]) -> None:
        """Take a line, which must have `seconds` since the session started."""
        self._lines.append(line)
        if line["seconds"] - self._written_at >= SEGMENT_SECONDS:
            self._written_at = line["seconds"]
            self.flush()

    def flush(self) -> None:
        """Write what was gathered."""
        if self._lines:
            self._segment += 1
            self._store.write_new(f"{self._prefix}-{self._segment:06d}.jsonl", json_lines(self._lines))
            self._lines = []


def session_seconds(store: Store, stage: str) -> float:
    """Wall time of all sessions of a stage so far, as far as it was written."""
    return session_total(store, stage, "seconds")


def session_total(store: Store, stage: str, name: str) -> float:
    """A number that grows from 0 within each session of a stage, summed over all sessions, as far as it was written."""
    return sum(float(newest_line(store, file).get(name, 0.0)) for file in newest_files(store, stage).values())


def newest_files(store: Store, stage: str) -> dict[str, str]:
    """The last file of each session whose files' names begin with `<stage>-`, by that name without the number.

    A day of a session has thousands of files, which in a bucket take minutes to read.
    """
    return {file.rpartition("-")[0]: file for file in store.names(FOLDER) if file.startswith(f"{stage}-")}


def newest_line(store: Store, file: str) -> dict[str, Any]:
    """The last line of a file."""
    return store.read_lines(f"{FOLDER}/{file}")[-1]
