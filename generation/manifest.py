"""The manifest: immutable segments that say which rows are visible.

Each writer takes an *incarnation* by creating `manifest/incarnation-<n>.json` exclusively, and only then reads what its predecessors
left; its first segment records exactly what it read, and nothing else of a predecessor counts ever after. A writer
that finds the next incarnation taken after it wrote a segment does not acknowledge that segment. So whatever was acknowledged was
written before the successor began to read: it is visible. Knows files and units, not who writes them or why.

A writer snapshots what it has acknowledged every so many segments, and a reader starts from the newest snapshot of the newest
incarnation that wrote anything. Snapshots of others count only where a first segment names them, so one that a superseded writer ends
later counts for nothing. Files that the last snapshot but one makes superfluous are deleted, unless the writer finds itself superseded
once it has written the last one: a successor that took over after that look starts from the last one, and needs none of them. Claims of
incarnations are kept for ever: a writer that slept for days must find that of its successor.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from generation.errors import RunLockedError, StorageError
from generation.manifest_state import Entry, ManifestState, segment_bytes, segment_line
from generation.snapshot import FOLDER, Part, Snapshot, read_all, read_snapshot, snapshot_name, take_snapshot
from generation.storage import Store, json_bytes, json_lines

SNAPSHOT_AFTER = 512
"""Segments after which a writer should take a snapshot."""

_ENTRIES_LIKE_A_SEGMENT = 32
"""So many shards or tombstones cost a reader about as much as opening a segment."""

_READ_ATTEMPTS = 20
"""Each finds that a snapshot was written since, minutes after the last one."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Files that a manifest is read from.

    Attributes:
        snapshot: Snapshot that they start from, or None.
        segments: (incarnation, first, last) of the segments read after it, in order.
    """

    snapshot: str | None = None
    segments: tuple[tuple[int, int, int], ...] = ()

    @property
    def num_segments(self) -> int:
        """Segments read after the snapshot."""
        return sum(last - first + 1 for _, first, last in self.segments)


@dataclass(frozen=True, slots=True)
class Replay:
    """What a manifest says at one moment.

    Attributes:
        state: All visible lines, added up.
        sources: Where they were read.
        parts: Of the snapshot.
    """

    state: ManifestState
    sources: Sources
    parts: tuple[Part, ...]


def replay(store: Store) -> Replay:
    """Read the manifest. Starts over where a snapshot replaces files that it was about to read.

    Raises:
        StorageError: A segment is missing or unreadable.
    """
    failed = ""
    for _ in range(_READ_ATTEMPTS):
        names = store.names(FOLDER)
        try:
            return _read(store, _sources(store, names))
        except StorageError as error:
            cause = str(error.__cause__ or error)
            if store.names(FOLDER) == names and failed == cause:
                raise
            failed = cause
    raise StorageError(f"{store.uri}/{FOLDER}: {_READ_ATTEMPTS} times, a file went away while it was read: {failed}")


class SegmentWriter:
    """Writes the segments of one incarnation, one at a time, and snapshots of them.

    Args:
        store: The run folder.
        incarnation: Its number.
        found: What it took over.

    Attributes:
        incarnation: Its number.
    """

    def __init__(self, store: Store, incarnation: int, found: Replay) -> None:
        self._store = store
        self._seq = 0
        self._parts = found.parts
        self._since_snapshot = found.sources.num_segments
        self._snapshots: list[tuple[int, Snapshot]] = []
        self.incarnation = incarnation

    @property
    def snapshot_is_due(self) -> bool:
        """Whether a restart would have to read many segments."""
        return self._since_snapshot >= SNAPSHOT_AFTER

    def append(self, entries: Sequence[Entry]) -> dict[str, Any]:
        """Write a segment; when this returns, its entries are visible for good. Returns its line, for `ManifestState.apply`.

        Raises:
            StorageError: It is not known to be written; take a new incarnation to find out.
            RunLockedError: Another writer has taken over; the entries do not count.
        """
        line = segment_line(entries)
        self._since_snapshot += 1 + len(entries) // _ENTRIES_LIKE_A_SEGMENT
        self._write(segment_bytes(line))
        return line

    def begin(self, sources: Sources) -> None:
        """Write the first segment, which says what was taken over. Raises what `append` does."""
        first = {"incarnation": self.incarnation, "snapshot": sources.snapshot, "read": sources.segments}
        self._write(json_lines([first]))

    def snapshot(self, state: ManifestState) -> Snapshot:
        """Copy the state that all entries appended so far add up to; to be called between two appends."""
        self._since_snapshot = 0
        taken = take_snapshot(state, self._parts, self.incarnation, self._seq)
        self._snapshots.append((self._seq, taken))
        return taken

    def save(self, snapshot: Snapshot) -> None:
        """Write the newest snapshot, and delete what is superfluous with the one before it. May run beside an append.

        Raises:
            StorageError: It cannot be written; the segments are still there, and the next one may succeed.
        """
        try:
            snapshot.write(self._store)
        except StorageError:
            self._snapshots.pop()
            raise
        self._parts = snapshot.parts
        if len(self._snapshots) > 1 and not self._is_superseded():
            self._sweep()

    def _write(self, line: bytes) -> None:
        self._seq += 1
        name = _segment(self.incarnation, self._seq)
        try:
            self._store.write_new(name, line)
        except FileExistsError as error:
            raise StorageError(f"{self._store.uri}/{name}: exists; two writers share an incarnation") from error
        if self._is_superseded():
            raise RunLockedError(
                f"{self._store.uri}: incarnation {self.incarnation + 1} has taken this run over from {self.incarnation};"
                " let the newer driver finish, or stop it and start again"
            )

    def _sweep(self) -> None:
        self._snapshots = self._snapshots[-2:]
        (covered, before), (_, last) = self._snapshots
        needed = before.names | last.names
        for name in self._store.names(FOLDER):
            kind, number, seq = _parse(name)
            newer = number > self.incarnation or (number == self.incarnation and kind == "" and seq > covered)
            if kind not in {"incarnation", "?"} and name not in needed and not newer:
                self._store.delete(f"{FOLDER}/{name}")

    def _is_superseded(self) -> bool:
        return self._store.exists(_claim(self.incarnation + 1))


def take_over(store: Store) -> tuple[SegmentWriter, ManifestState]:
    """Become the one writer of a manifest, and read what is visible in it.

    Raises:
        RunLockedError: Another writer took over at the same moment.
        StorageError: The manifest cannot be read or written.
    """
    incarnation = _take_incarnation(store)
    found = replay(store)
    writer = SegmentWriter(store, incarnation, found)
    writer.begin(found.sources)
    return writer, found.state


def _take_incarnation(store: Store) -> int:
    while True:
        taken = [number for kind, number, _ in map(_parse, store.names(FOLDER)) if kind == "incarnation"]
        incarnation = max(taken, default=0) + 1
        try:
            store.write_new(_claim(incarnation), json_bytes({"incarnation": incarnation}))
        except FileExistsError:
            continue
        return incarnation


def _sources(store: Store, names: Sequence[str]) -> Sources:
    """What a listing of the folder says should be read."""
    last = {"": dict[int, int](), "snapshot": dict[int, int]()}
    for kind, number, seq in map(_parse, names):
        if kind in last:
            last[kind][number] = max(seq, last[kind].get(number, 0))
    newest = max((*last[""], *last["snapshot"]), default=0)
    if not newest:
        return Sources()
    end, covered = last[""].get(newest, 0), last["snapshot"].get(newest)
    if covered is not None:
        return Sources(snapshot_name(newest, covered), ((newest, covered + 1, max(end, covered)),))
    try:
        header = store.read_json(_segment(newest, 1))
    except ValueError as error:
        raise StorageError(f"{store.uri}/{_segment(newest, 1)}: not a manifest segment: {error}") from error
    read = tuple((number, first, seq) for number, first, seq in header["read"])
    return Sources(header["snapshot"], (*read, (newest, 1, end)))


def _read(store: Store, sources: Sources) -> Replay:
    state, parts = read_snapshot(store, sources.snapshot) if sources.snapshot else (ManifestState(), ())
    segments = [_segment(number, seq) for number, first, end in sources.segments for seq in range(first, end + 1)]
    for name, content in zip(segments, read_all(store, segments), strict=True):
        try:
            line = json.loads(content)
            if "incarnation" not in line:
                state.apply(line)
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{store.uri}/{name}: not a manifest segment: {error}") from error
    return Replay(state, sources, parts)


def _parse(name: str) -> tuple[str, int, int]:
    """("" for a segment or what it is, incarnation, segment or 0) of a file's name; ("?", 0, 0) where it is no name of ours."""
    words = name.partition(".")[0].split("-")
    kind = words.pop(0) if words[0] in {"incarnation", "snapshot", "part"} else ""
    if len(words) != (1 if kind == "incarnation" else 2) or not all(word.isdigit() for word in words):
        return ("?", 0, 0)
    return (kind, int(words[0]), int(words[-1]) if kind != "incarnation" else 0)


def _claim(incarnation: int) -> str:
    return f"{FOLDER}/incarnation-{incarnation:06d}.json"


def _segment(incarnation: int, seq: int) -> str:
    return f"{FOLDER}/{incarnation:06d}-{seq:06d}.jsonl"
