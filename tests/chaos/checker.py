"""Looks at a run folder from the outside, and says what is wrong with it.

Reads files with json and pyarrow alone: a mistake in our own reading code must not hide one in our writing code; only at the end it compares
what it found with what our reader sees. Every planned unit is visible exactly once, whole, or has a tombstone; the dataset has exactly its
rows, and each of them is visible.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from generation.errors import StorageError
from generation.manifest import replay
from generation.storage import Store

_FINISHED = re.compile(r"(shard|part)-.*\.arrow|.*\.jsonl|(incarnation|snapshot)-.*\.json")
_DATASET = "dataset/round-0"


@dataclass
class Lines:
    """What some lines of a manifest add up to.

    Attributes:
        places: Unit to each (file, first row, row after the last) that lists it.
        tombstones: Unit to how often it was given up.
        shards: File to (sha256, bytes) of each line that lists it.
    """

    places: dict[str, list[tuple[str, int, int]]] = field(default_factory=dict)
    tombstones: Counter[str] = field(default_factory=Counter)
    shards: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    def add(self, lines: Iterable[dict[str, Any]]) -> None:
        """Take lines in."""
        for line in lines:
            self.tombstones.update(line.get("tombstones", {}).keys())
            for file, sha256, file_bytes, units in line.get("shards", []):
                self.shards.setdefault(file, []).append((sha256, file_bytes))
                for unit, start, end in units:
                    self.places.setdefault(unit, []).append((file, start, end))

    def settled(self) -> Counter[str]:
        """Unit to how often it is listed or given up."""
        return self.tombstones + Counter({unit: len(places) for unit, places in self.places.items()})


def check_run(folder: Path, run_id: str, target: int | None = None, history: Path | None = None) -> list[str]:
    """Everything that is wrong with the generated rows of a run that has ended.

    Args:
        folder: The arm's run folder.
        run_id: What its row ids were made with.
        target: Rows of each task that its dataset must have; None where it was not sealed.
        history: Copies of segments, kept before snapshots made them superfluous.

    Returns:
        Violations, one line each; empty where all is well.
    """
    found: list[str] = []
    records = _records(folder)
    planned = {unit: record["flows_per_unit"] for record in records for unit in _units(record)}
    manifest = read_manifest([history, folder / "manifest"] if history else [folder / "manifest"], found)
    found += [f"plan: record {place} has index {r['index']}" for place, r in enumerate(records) if r["index"] != place]
    strange = manifest.settled().keys() - planned.keys()
    found += [f"unit {unit} is in the manifest and not in the plan" for unit in sorted(strange)]
    visible = _visible_rows(run_id, planned, manifest, _open_shards(folder, manifest, found), found)
    found += _unfinished(folder) + _read_otherwise(folder, manifest)
    if target is not None:
        rows = _dataset_rows(folder)
        found += _wrong_dataset(rows, {record["task"]: target for record in records}, visible)
        found += _gaps(rows, records, manifest)
        found += _unsealed(folder)
    return found


def read_manifest(folders: list[Path], found: list[str]) -> Lines:
    """What counts: what the newest incarnation took over, and its own segments. No incarnation may settle what was settled before it."""
    segments: dict[int, dict[int, list[Any]]] = {}
    for path in (path for folder in folders for path in folder.glob("*.jsonl")):
        incarnation, number = map(int, path.stem.split("-"))
        segments.setdefault(incarnation, {})[number] = _lines(path)
    counting: dict[int, list[tuple[int, int]]] = {}
    manifest = Lines()
    for incarnation, own in sorted(segments.items()):
        numbers = [(incarnation, number) for number in range(1, max(own) + 1)]
        counting[incarnation] = _taken_over(own[1][0], counting) + numbers
        manifest = Lines()
        for each, number in counting[incarnation]:
            if number in segments[each]:
                manifest.add(segments[each][number])
            else:
                found.append(f"manifest: segment {number} of incarnation {each} counts and is not there")
        for unit, count in manifest.settled().items():
            if count > 1:
                places = [file for file, _, _ in manifest.places.get(unit, [])]
                found.append(f"unit {unit} is settled {count} times in incarnation {incarnation}: {places}")
    return manifest


def _taken_over(header: dict[str, Any], counting: dict[int, list[tuple[int, int]]]) -> list[tuple[int, int]]:
    """Segments that an incarnation found, as its first line names them. A snapshot stands for one's segments up to a number, and all before."""
    taken: list[tuple[int, int]] = []
    if header["snapshot"]:
        incarnation, end = map(int, header["snapshot"].removesuffix(".json").split("-")[1:])
        taken += [(each, number) for each, number in counting[incarnation] if each < incarnation or number <= end]
    for incarnation, first, end in header["read"]:
        taken += [(incarnation, number) for number in range(first, end + 1)]
    return taken


def _read_otherwise(folder: Path, manifest: Lines) -> list[str]:
    """Where our own reader, which starts from snapshots, sees something else."""
    try:
        state = replay(Store(str(folder))).state
    except StorageError as error:
        return [f"our own reader cannot read the manifest: {error}"]
    seen = {unit: (place.file, place.start, place.end) for unit, place in state.places.items()}
    differ = [
        unit for unit in seen.keys() | manifest.places.keys() if manifest.places.get(unit, [None])[0] != seen.get(unit)
    ]
    found = [f"unit {unit} is read at {seen.get(unit)}, listed at {manifest.places.get(unit)}" for unit in differ]
    given_up = state.tombstones.keys() ^ manifest.tombstones.keys()
    return found + [
        f"unit {unit} is given up for our reader or in the segments, not for both" for unit in sorted(given_up)
    ]


def _open_shards(folder: Path, manifest: Lines, found: list[str]) -> dict[str, pa.Table]:
    tables: dict[str, pa.Table] = {}
    for file, listed in manifest.shards.items():
        if len(set(listed)) > 1:
            found.append(f"shard {file} is listed with different contents: {listed}")
        sha256, size = listed[0]
        try:
            content = (folder / file).read_bytes()
        except OSError as error:
            found.append(f"shard {file} is listed and cannot be read: {error}")
            continue
        if len(content) != size or hashlib.sha256(content).hexdigest() != sha256:
            found.append(f"shard {file} is not what was listed: {len(content)} bytes, {size} listed")
            continue
        tables[file] = pa.ipc.open_file(content).read_all().select(["row_id", "unit", "index", "status"])
    return tables


def _visible_rows(
    run_id: str, planned: dict[str, int], manifest: Lines, tables: dict[str, pa.Table], found: list[str]
) -> dict[str, str]:
    """Row id to status of all visible rows; each unit's ids are compared with those that the plan demands."""
    visible: dict[str, str] = {}
    places = [(unit, *place) for unit, listed in manifest.places.items() for place in listed if place[0] in tables]
    for unit, file, start, end in places:
        rows = tables[file].slice(start, end - start).to_pylist()
        wanted = [(row_id(run_id, unit, index), unit, index) for index in range(planned.get(unit, 0))]
        if [(row["row_id"], row["unit"], row["index"]) for row in rows] != wanted:
            found.append(f"unit {unit} in {file}: the {len(rows)} rows there are not the {len(wanted)} of the plan")
        for row in rows:
            if row["row_id"] in visible:
                found.append(f"row {row['row_id']} of unit {unit} is visible twice, again in {file}")
            visible[row["row_id"]] = row["status"]
    return visible


def row_id(run_id: str, unit: str, index: int) -> str:
    """blake2b-128 of (run, unit, index)."""
    return hashlib.blake2b("\x1f".join((run_id, unit, str(index))).encode(), digest_size=16).hexdigest()


def _unfinished(folder: Path) -> list[str]:
    """Files among rows, segments and plan records that are none of them. Those with a dot before their name nobody reads."""
    files = [path for name in ("rows", "manifest", "plan") for path in (folder / name).rglob("*") if path.is_file()]
    seen = [path for path in files if not path.name.startswith(".")]
    return [f"{path.relative_to(folder)} is not finished" for path in seen if not _FINISHED.fullmatch(path.name)]


def _wrong_dataset(rows: list[dict[str, Any]], targets: dict[str, int], visible: dict[str, str]) -> list[str]:
    """Not exactly the target of each task; a row that is there twice, or is no visible instance."""
    counts, ids = Counter(row["task"] for row in rows), Counter(row["row_id"] for row in rows)
    found = [f"dataset: {counts[task]} rows of '{task}', not {wanted}" for task, wanted in targets.items() if counts[task] != wanted]  # fmt: skip
    found += [f"dataset: row {each} is there {count} times" for each, count in ids.items() if count > 1]
    strange = {each: visible.get(each, "not visible") for each in ids if visible.get(each) != "instance"}
    return found + [f"dataset: row {each} is {status}, not a visible instance" for each, status in strange.items()]


def _gaps(rows: list[dict[str, Any]], records: list[dict[str, Any]], manifest: Lines) -> list[str]:
    """Units that were passed over: the dataset has rows of later ones of the task, and their fate is not known."""
    last: dict[str, str] = {}
    for row in rows:
        last[row["task"]] = max(last.get(row["task"], ""), row["unit"])
    settled = manifest.settled()
    before = [unit for record in records for unit in _units(record) if unit <= last.get(record["task"], "")]
    return [f"unit {u} is neither visible nor given up; the dataset goes beyond it" for u in before if not settled[u]]


def _unsealed(folder: Path) -> list[str]:
    strange = {path.name for path in (folder / _DATASET).glob("*.parquet")} - set(_sealed_files(folder))
    return [f"dataset: {name} is there and no seal lists it" for name in sorted(strange)]


def _sealed_files(folder: Path) -> list[str]:
    seals = sorted((folder / _DATASET).glob("SEALED*.json"), key=lambda path: (len(path.name), path.name))
    return [file["name"] for file in json.loads(seals[-1].read_text())["files"]] if seals else []


def _dataset_rows(folder: Path) -> list[dict[str, Any]]:
    files = [folder / _DATASET / name for name in _sealed_files(folder)]
    return [row for file in files for row in pq.read_table(file, columns=["row_id", "task", "unit"]).to_pylist()]


def _records(folder: Path) -> list[dict[str, Any]]:
    return [record for path in sorted((folder / "plan").glob("*.jsonl")) for record in _lines(path)]


def _units(record: dict[str, Any]) -> list[str]:
    return [f"{record['index']:06d}-{number:06d}" for number in range(record["num_units"])]


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
