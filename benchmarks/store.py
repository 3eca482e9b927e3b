"""How fast rows become durable and visible, and how fast they are read back: Arrow, fsync, SHA-256 and the manifest, on one disk.

Units of 128 rows of English words in any order, of two sizes: the miniature's, and that of GSM8K with a worked answer, which gives the
figures on top. The write side is the replica's own, down to the commit line in a segment of one shard; the read side folds nothing. The other
sides are JSONL with one fsync a shard, and pyarrow alone: the same bytes, without fsync, digest and manifest. All take turns.
"""

import argparse
import hashlib
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from cluster.protocol import GenerateJob
from cluster.shard_writer import ShardWriter
from cluster.unit_rows import FullUnit
from generation.config import GenerationConfig
from generation.instances.flow import InstanceContext
from generation.instances.plan import unit_id
from generation.manifest import replay, take_over
from generation.manifest_state import Shard
from generation.prompts.prompt_set import PromptSet
from generation.rows import ROW_SCHEMA, SHARD_OPTIONS, Row, batch_to_rows, row_id, rows_to_batch
from generation.storage import Store, digest, json_lines
from generation.visible import ShardReader

WORDS = {"miniature": (4, 6), "gsm8k": (45, 100)}
"""Words of an input and of a rationale."""

_ROWS_PER_UNIT = 128
_TEXT = Path(__file__).parent.parent / "LICENSE"

Shards = Sequence[Sequence[FullUnit]]
Side = Callable[[Path, Shards], tuple[float, float, int]]


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--units", type=int, default=8, help="units of a shard")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side takes its turn")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder where it is left out")
    options = parser.parse_args()
    by_size = {size: _measure(size, options) for size in WORDS}
    figures = by_size["gsm8k"]
    ours, jsonl = figures["sides"]["psi"], figures["sides"]["jsonl"]
    line = {
        "benchmark": "store",
        "rows": options.shards * options.units * _ROWS_PER_UNIT,
        "rows_per_second": ours["written_per_second"],
        "rows_read_per_second": ours["read_per_second"],
        "bytes_per_row": ours["bytes_per_row"],
        "ratio": round(ours["written_per_second"] / jsonl["written_per_second"], 3),
        "ratio_to": "rows written per second as JSONL with one fsync a shard",
        "sizes": by_size,
    }
    print(json.dumps(line))


def make_shards(size: str, shards: int, units: int) -> Shards:
    """Full units as a replica's writer gets them."""
    rng, words = random.Random(0), _TEXT.read_text().split()

    def unit(number: int) -> FullUnit:
        name = unit_id(0, number)
        rows = [
            _row(name, index, [_text(rng, words, count) for count in WORDS[size]]) for index in range(_ROWS_PER_UNIT)
        ]
        return FullUnit(name, "1-1", rows, [{"draft": {"requests": 1, "output_tokens": 60}}] * len(rows), 0)

    return [[unit(shard * units + number) for number in range(units)] for shard in range(shards)]


def psi(folder: Path, shards: Shards) -> tuple[float, float, int]:
    """As replicas write, the coordinator commits and the driver reads: seconds to write, seconds to read, bytes."""
    store = Store(str(folder))
    manifest, _ = take_over(store)
    writer = ShardWriter(_job(folder), iter(f"shard-r-{i:06d}.arrow" for i in range(len(shards))).__next__)
    size, started = 0, time.perf_counter()
    for units in shards:
        commit = writer.write(units).commit
        counters = commit.instances, commit.rejections, commit.tokens
        manifest.append([Shard(commit.file, commit.sha256, commit.file_bytes, commit.units, *counters)])
        size += commit.file_bytes
    written = time.perf_counter()
    reader = ShardReader(store)
    read = sum(len(reader.rows(place)) for place in replay(store).state.places.values())
    ended = time.perf_counter()
    _expect(read, shards)
    return written - started, ended - written, size


def pyarrow_alone(folder: Path, shards: Shards) -> tuple[float, float, int]:
    """The same files with nothing that makes them safe."""
    files = [folder / f"{number}.arrow" for number in range(len(shards))]
    started = time.perf_counter()
    for file, units in zip(files, shards, strict=True):
        with pa.ipc.new_file(str(file), ROW_SCHEMA, options=SHARD_OPTIONS) as writer:
            for unit in units:
                writer.write_batch(rows_to_batch(unit.rows))
    written = time.perf_counter()
    read = sum(len(batch_to_rows(pa.ipc.open_file(str(file)).read_all())) for file in files)
    ended = time.perf_counter()
    _expect(read, shards)
    return written - started, ended - written, sum(file.stat().st_size for file in files)


def jsonl(folder: Path, shards: Shards) -> tuple[float, float, int]:
    """One JSON object a row, one fsync a shard."""
    files = [folder / f"{number}.jsonl" for number in range(len(shards))]
    started = time.perf_counter()
    for file, units in zip(files, shards, strict=True):
        with file.open("wb") as stream:
            stream.write(json_lines(row._asdict() for unit in units for row in unit.rows))
            stream.flush()
            os.fsync(stream.fileno())
    written = time.perf_counter()
    read = sum(len([Row(**json.loads(line)) for line in file.read_bytes().splitlines()]) for file in files)
    ended = time.perf_counter()
    _expect(read, shards)
    return written - started, ended - written, sum(file.stat().st_size for file in files)


SIDES: dict[str, Side] = {"psi": psi, "pyarrow_alone": pyarrow_alone, "jsonl": jsonl}


def _measure(size: str, options: argparse.Namespace) -> dict[str, Any]:
    shards = make_shards(size, options.shards, options.units)
    rows = options.shards * options.units * _ROWS_PER_UNIT
    taken: dict[str, list[tuple[float, float, int]]] = {name: [] for name in SIDES}
    for _ in range(options.rounds):
        for name, side in SIDES.items():
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                taken[name].append(side(Path(folder), shards))
    sides = {
        name: {
            "written_per_second": round(rows / median(write for write, _, _ in times)),
            "read_per_second": round(rows / median(read for _, read, _ in times)),
            "bytes_per_row": round(times[0][2] / rows, 1),
        }
        for name, times in taken.items()
    }
    return {"sides": sides, "compression": _compression(shards), "folder_sync_ms": _folder_sync_ms(options.folder)}


def _compression(shards: Shards) -> dict[str, dict[str, float]]:
    """What each codec of Arrow IPC takes and costs: microseconds a row to write with the digest, and to read with it."""
    units = [unit for shard in shards for unit in shard]
    batches = [rows_to_batch(unit.rows) for unit in units]
    rows = len(units) * _ROWS_PER_UNIT
    found: dict[str, dict[str, float]] = {}
    for codec in (None, "lz4", "zstd"):
        started = time.perf_counter()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, ROW_SCHEMA, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
            for batch in batches:
                writer.write_batch(batch)
        content = sink.getvalue()
        hashlib.sha256(content).hexdigest()
        written = time.perf_counter()
        hashlib.sha256(content).hexdigest()
        pa.ipc.open_file(content).read_all()
        ended = time.perf_counter()
        seconds = {"write_us": written - started, "read_us": ended - written}
        costs = {name: round(1e6 * value / rows, 2) for name, value in seconds.items()}
        found[codec or "none"] = {"bytes_per_row": round(content.size / rows, 1), **costs}
    return found


def _folder_sync_ms(parent: Path | None, files: int = 50) -> float:
    """What it costs a shard that its name survives a power loss too: the folder's fsync, after the file's own."""
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        spent: list[float] = []
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        for number in range(files):
            with (Path(folder) / f".{number}").open("wb") as stream:
                stream.write(bytes(100_000))
                stream.flush()
                os.fsync(stream.fileno())
            os.link(f"{folder}/.{number}", f"{folder}/{number}")
            started = time.perf_counter()
            os.fsync(handle)
            spent.append(time.perf_counter() - started)
        os.close(handle)
    return round(1e3 * median(spent), 3)


def _expect(read: int, shards: Shards) -> None:
    written = sum(len(unit.rows) for units in shards for unit in units)
    if read != written:
        raise AssertionError(f"{read} rows were read of {written} that were written")


def _row(unit: str, index: int, texts: Sequence[str]) -> Row:
    row = Row(row_id("benchmark", unit, index), unit, index, "math", "instance", input=texts[0], rationale=texts[1])
    return row._replace(
        answer=str(index), first_answer=str(index), votes=json.dumps({str(index): 3, "0": 1}), agreement=0.75,
        bundle=digest("bundle"), principles=tuple(digest(str(i))[:16] for i in range(4)), cell=digest(str(index % 9)),
        model=digest("model"), sampling='{"max_tokens":256,"seed":0,"temperature":0.8,"top_p":0.95}', requests=5,
        prompt_tokens=1700 + index, cached_tokens=1500, output_tokens=400 + index,
    )  # fmt: skip


def _text(rng: random.Random, words: Sequence[str], count: int) -> str:
    return " ".join(rng.choice(words) for _ in range(count))


def _job(folder: Path) -> GenerateJob:
    generation = GenerationConfig(accepted_rows=1)
    return GenerateJob(str(folder), "benchmark", InstanceContext("benchmark", {}, PromptSet(""), generation, ""))


if __name__ == "__main__":
    main()
