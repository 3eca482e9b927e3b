"""Snapshots of a manifest: what its segments add up to, so that a restart reads few files.

A snapshot is `snapshot-<incarnation>-<segment>.json`, the counters and tombstones up to and including that segment, and the list of its
parts. A part is an Arrow file with some of the shards, in the order of their commits; each snapshot writes one and takes the others over.
A part takes in those before it that are not larger than itself: so n segments have at most log2(n) parts, and a shard is written at most
log2(n) times.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from generation.errors import StorageError
from generation.manifest_state import ManifestState
from generation.storage import Store, json_bytes

FOLDER = "manifest"
_READERS = 16
"""Files read at once: on an object store each costs some 30 ms, whatever its size."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the shards.

    Attributes:
        name: Of its file.
        num_shards: In it.
    """

    name: str
    num_shards: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that is not written yet.

    Attributes:
        name: Of its file.
        parts: All parts, of which the last is to be written with it; None: there are no shards.
        content: Of its file.
        last_part: Content of the last part.
    """

    name: str
    parts: tuple[Part, ...]
    content: bytes
    last_part: bytes

    @property
    def names(self) -> frozenset[str]:
        """Files that a reader of it needs."""
        return frozenset({self.name, *(part.name for part in self.parts)})

    def write(self, store: Store) -> None:
        """Write it.

        Raises:
            StorageError: It cannot be written.
        """
        if self.last_part:
            store.write_new(f"{FOLDER}/{self.parts[-1].name}", self.last_part)
        store.write_new(f"{FOLDER}/{self.name}", self.content)


def snapshot_name(incarnation: int, seq: int) -> str:
    """The file of the snapshot that covers an incarnation up to a segment, and all that it read."""
    return f"snapshot-{incarnation:06d}-{seq:06d}.json"


def take_snapshot(state: ManifestState, parts: tuple[Part, ...], incarnation: int, seq: int) -> Snapshot:
    """A copy of a state, of whose shards the first are in `parts`."""
    kept, start = list(parts), sum(part.num_shards for part in parts)
    total = len(state.places.shards)
    last_part = b""
    if total > start:
        while kept and kept[-1].num_shards <= total - start:
            start -= kept.pop().num_shards
        kept.append(Part(f"part-{incarnation:06d}-{seq:06d}.arrow", total - start))
        last_part = _to_bytes(state.places.to_batch(start))
    head = {
        "parts": [[part.name, part.num_shards] for part in kept],
        "tombstones": state.tombstones,
        "instances": state.instances,
        "rejections": state.rejections,
        "tokens": state.tokens,
    }
    return Snapshot(snapshot_name(incarnation, seq), tuple(kept), json_bytes(head), last_part)


def read_snapshot(store: Store, name: str) -> tuple[ManifestState, tuple[Part, ...]]:
    """The state at a snapshot, and its parts.

    Raises:
        StorageError: It or a part is missing or damaged.
    """
    try:
        head = store.read_json(f"{FOLDER}/{name}")
        parts = tuple(Part(part, num_shards) for part, num_shards in head["parts"])
        state = ManifestState(instances=head["instances"], rejections=head["rejections"], tokens=head["tokens"])
        for content in read_all(store, [f"{FOLDER}/{part.name}" for part in parts]):
            state.places.extend(pa.ipc.open_file(pa.py_buffer(content)).get_batch(0))
    except (ValueError, KeyError, pa.ArrowInvalid) as error:
        raise StorageError(f"{store.uri}/{FOLDER}/{name}: not a snapshot of a manifest: {error}") from error
    for unit, reason in head["tombstones"].items():
        state.places.bury(unit)
        state.tombstones[unit] = reason
    return state, parts


def read_all(store: Store, names: Iterable[str]) -> Iterable[bytes]:
    """Files, in the order of their names; several are read at once.

    Raises:
        StorageError: One cannot be read.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(store.read, names)


def _to_bytes(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()
