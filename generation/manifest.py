"""The manifest: immutable segments that say which rows are visible.

Each writer takes an *incarnation* by creating `manifest/incarnation-<n>.json` exclusively, and only then reads what its predecessors
left; the first line of its first segment records exactly what it read, and nothing else of a predecessor counts ever after. A writer
that finds the next incarnation taken after it wrote a segment does not acknowledge that segment. So whatever was acknowledged was
written before the successor began to read: it is visible. Knows files and units, not who writes them or why.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from generation.errors import RunLockedError, StorageError
from generation.storage import Store, json_bytes, json_lines

FOLDER = "manifest"
SNAPSHOT_AFTER = 64
"""A take-over that reads more segments than this writes a snapshot of them."""


@dataclass(frozen=True, slots=True)
class UnitPlace:
    """Where a visible unit's rows lie: rows [start, end) of a shard, whose bytes have this SHA-256."""

    file: str
    sha256: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ShardLine:
    """A committed shard, and the units that became visible through it.

    Attributes:
        file: Path relative to the run folder.
        sha256: Hex digest of its bytes.
        file_bytes: Its size.
        units: (unit id, first row, row after the last) of the units that it won.
        instances: Rows with status `instance`, by task, of the whole shard.
        rejections: `task/stage/reason` to count, of the whole shard.
        tokens: Stage to counters, of the whole shard.
    """

    file: str
    sha256: str
    file_bytes: int
    units: tuple[tuple[str, int, int], ...]
    instances: dict[str, int] = field(default_factory=dict[str, int])
    rejections: dict[str, int] = field(default_factory=dict[str, int])
    tokens: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])

    def to_json(self) -> dict[str, Any]:
        """As a line of a segment."""
        values: dict[str, Any] = {"file": self.file, "sha256": self.sha256, "bytes": self.file_bytes}
        values["units"] = [list(unit) for unit in self.units]
        counters = {"instances": self.instances, "rejections": self.rejections, "tokens": self.tokens}
        return values | {name: counts for name, counts in counters.items() if counts}


def tombstone_line(unit: str, reason: str) -> dict[str, Any]:
    """The line that gives a unit up for good."""
    return {"tombstone": unit, "reason": reason}


@dataclass(slots=True)
class ManifestState:
    """What the lines add up to.

    Attributes:
        places: Visible units.
        tombstones: Units given up, and why.
        instances: Rows with status `instance`, by task.
        rejections: `task/stage/reason` to count.
        tokens: Stage to `requests`, `prompt_tokens`, `cached_tokens`, `output_tokens`.
        shards: Shard to (SHA-256, size in bytes).
    """

    places: dict[str, UnitPlace] = field(default_factory=dict[str, UnitPlace])
    tombstones: dict[str, str] = field(default_factory=dict[str, str])
    instances: Counter[str] = field(default_factory=Counter[str])
    rejections: Counter[str] = field(default_factory=Counter[str])
    tokens: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    shards: dict[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])

    def apply(self, line: dict[str, Any]) -> list[str]:
        """Take one line in; returns the units that it settled, which never change again."""
        self.instances.update(line.get("instances", {}))
        self.rejections.update(line.get("rejections", {}))
        for stage, counts in line.get("tokens", {}).items():
            self.tokens.setdefault(stage, Counter()).update(counts)
        if "tombstone" in line:
            return self._bury(line["tombstone"], line["reason"])
        return self._show(line) if "file" in line else []

    def to_lines(self) -> Iterable[dict[str, Any]]:
        """The same state in as few lines as possible: the body of a snapshot."""
        yield {"instances": self.instances, "rejections": self.rejections, "tokens": self.tokens}
        units: dict[str, list[tuple[str, int, int]]] = {}
        for unit, place in self.places.items():
            units.setdefault(place.file, []).append((unit, place.start, place.end))
        for file, members in units.items():
            sha256, file_bytes = self.shards[file]
            yield ShardLine(file, sha256, file_bytes, tuple(members)).to_json()
        yield from (tombstone_line(unit, reason) for unit, reason in self.tombstones.items())

    def _bury(self, unit: str, reason: str) -> list[str]:
        if unit in self.places or unit in self.tombstones:
            return []
        self.tombstones[unit] = reason
        return [unit]

    def _show(self, line: dict[str, Any]) -> list[str]:
        file, sha256 = line["file"], line["sha256"]
        self.shards.setdefault(file, (sha256, line["bytes"]))
        won = [u for u in line["units"] if u[0] not in self.places and u[0] not in self.tombstones]
        self.places.update({unit: UnitPlace(file, sha256, start, end) for unit, start, end in won})
        return [unit for unit, _, _ in won]


@dataclass(frozen=True, slots=True)
class Replay:
    """What a manifest says at one moment.

    Attributes:
        state: All visible lines, added up.
        snapshot: Snapshot that they start from, or None.
        read: (incarnation, last segment) of the segments read after it, in order.
    """

    state: ManifestState
    snapshot: str | None
    read: tuple[tuple[int, int], ...]

    @property
    def num_segments(self) -> int:
        """Segments read after the snapshot."""
        return sum(last for _, last in self.read)


def replay(store: Store) -> Replay:
    """Read the manifest: what the newest first segment names, and the segments that follow it.

    Raises:
        StorageError: A segment is missing or unreadable.
    """
    last: dict[int, int] = {}
    for name in store.names(FOLDER):
        head, dash, tail = name.removesuffix(".jsonl").partition("-")
        if dash and head.isdigit() and tail.isdigit():
            last[int(head)] = max(last.get(int(head), 0), int(tail))
    if not last:
        return Replay(ManifestState(), None, ())
    newest = max(last)
    header = _lines(store, _segment(newest, 1))[0]
    read = (*((number, end) for number, end in header["read"]), (newest, last[newest]))
    state = ManifestState()
    sources = [f"{FOLDER}/{header['snapshot']}"] if header["snapshot"] else []
    sources += [_segment(number, seq) for number, end in read for seq in range(1, end + 1)]
    for source in sources:
        for line in _lines(store, source):
            state.apply(line)
    return Replay(state, header["snapshot"], read)


class SegmentWriter:
    """Writes the segments of one incarnation, one at a time."""

    def __init__(self, store: Store, incarnation: int) -> None:
        self._store = store
        self._seq = 0
        self.incarnation = incarnation

    def append(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write a segment; when this returns, its lines are visible for good.

        Raises:
            StorageError: It is not known to be written; take a new incarnation to find out.
            RunLockedError: Another writer has taken over; the lines do not count.
        """
        self._seq += 1
        name = _segment(self.incarnation, self._seq)
        try:
            self._store.write_new(name, json_lines(lines))
        except FileExistsError as error:
            raise StorageError(f"{self._store.uri}/{name}: exists; two writers share an incarnation") from error
        if self._store.exists(_claim(self.incarnation + 1)):
            raise RunLockedError(
                f"{self._store.uri}: incarnation {self.incarnation + 1} has taken this run over from {self.incarnation};"
                " let the newer driver finish, or stop it and start again"
            )


def take_over(store: Store) -> tuple[SegmentWriter, ManifestState]:
    """Become the one writer of a manifest, and read what is visible in it.

    Raises:
        RunLockedError: Another writer took over at the same moment.
        StorageError: The manifest cannot be read or written.
    """
    incarnation = _take_incarnation(store)
    found = replay(store)
    snapshot, read = found.snapshot, found.read
    if found.num_segments > SNAPSHOT_AFTER:
        snapshot, read = f"snapshot-{incarnation:06d}.jsonl", ()
        store.write_new(f"{FOLDER}/{snapshot}", json_lines(found.state.to_lines()))
    writer = SegmentWriter(store, incarnation)
    writer.append([{"incarnation": incarnation, "snapshot": snapshot, "read": read}])
    return writer, found.state


def _take_incarnation(store: Store) -> int:
    prefix = "incarnation-"
    while True:
        taken = [int(n.removeprefix(prefix)[:-5]) for n in store.names(FOLDER) if n.startswith(prefix)]
        incarnation = max(taken, default=0) + 1
        try:
            store.write_new(_claim(incarnation), json_bytes({"incarnation": incarnation}))
        except FileExistsError:
            continue
        return incarnation


def _lines(store: Store, name: str) -> list[Any]:
    try:
        return store.read_lines(name)
    except ValueError as error:
        raise StorageError(f"{store.uri}/{name}: not a manifest segment: {error}") from error


def _claim(incarnation: int) -> str:
    return f"{FOLDER}/incarnation-{incarnation:06d}.json"


def _segment(incarnation: int, seq: int) -> str:
    return f"{FOLDER}/{incarnation:06d}-{seq:06d}.jsonl"
