"""Reading the user's own files row by row: JSONL, CSV, Parquet, and folders of them or of the `datasets` library.

Every row comes with its place (`seeds.csv:17`); what cannot be read comes as a `BadRow` in its place, never as an exception. Knows
nothing of tasks.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

MAX_ROW_BYTES = 1_000_000
"""A longer line is not an example of a task but a broken file."""
SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".parquet", ".arrow")
_SPLIT_NAME = re.compile(r"^(train|test|validation|valid|dev|eval)(?![a-z])")


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as the file has it.

    Attributes:
        where: `file:line` (`file:row N` for binary files).
        values: Column to value; numbers of JSON keep their spelling.
    """

    where: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row, or a whole file, that cannot be read.

    Attributes:
        where: As in `RawRow`, or the file alone.
        problem: What is wrong, without the row's content.
    """

    where: str
    problem: str


def read_rows(path: Path) -> Iterator[RawRow | BadRow]:
    """All rows of a file or a folder, in order; an unreadable or empty one yields a single `BadRow`."""
    try:
        rows = _folder_rows(path) if path.is_dir() else _file_rows(path)
        first = next(rows, None)
        if first is None:
            yield BadRow(str(path), "is empty; at least one row is needed")
            return
        yield from chain([first], rows)
    except (OSError, pa.ArrowException) as error:
        yield BadRow(str(path), f"cannot be read: {error}")


def _file_rows(path: Path) -> Iterator[RawRow | BadRow]:
    match path.suffix.lower():
        case ".jsonl" | ".json" | ".ndjson":
            return _json_rows(path)
        case ".csv":
            return _csv_rows(path)
        case ".parquet":
            return _table_rows(path, parquet.ParquetFile(path).iter_batches())
        case ".arrow":
            return _table_rows(path, _arrow_batches(path))
        case other:
            known = "JSONL, CSV, Parquet or a `datasets` folder"
            return iter([BadRow(str(path), f"has an unknown kind '{other}'; make it {known}")])


def _folder_rows(folder: Path) -> Iterator[RawRow | BadRow]:
    state = folder / "state.json"
    if state.is_file():  # written by `Dataset.save_to_disk`
        names = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
        return chain.from_iterable(_file_rows(folder / name) for name in names)
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = ", ".join(json.loads(splits.read_text(encoding="utf-8"))["splits"])
        return iter([BadRow(str(folder), f"holds the splits {names}; name the folder of one of them")])
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    named = {match.group() for path in files if (match := _SPLIT_NAME.match(path.name))}
    if len(named) > 1:
        return iter([BadRow(str(folder), f"mixes files of {', '.join(sorted(named))}; name the file of one of them")])
    return chain.from_iterable(_file_rows(path) for path in files)


def _text_lines(path: Path) -> Iterator[tuple[int, str | BadRow]]:
    """(line number, text) of each line, counted from 1; a line that is too long or not UTF-8 is a `BadRow`."""
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_ROW_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > MAX_ROW_BYTES:
                size = len(line) + _skip_line(stream, line)
                limit = MAX_ROW_BYTES / 1e6
                yield number, BadRow(where, f"the line has {size / 1e6:.1f} MB; at most {limit:.0f} MB are allowed")
                continue
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield number, BadRow(where, f"is not UTF-8: byte {error.start + 1} is 0x{line[error.start]:02x}")


def _skip_line(stream: BinaryIO, start: bytes) -> int:
    """Read on to the end of a line that began with `start`; returns the bytes read."""
    skipped, part = 0, start
    while part and not part.endswith(b"\n"):
        part = stream.readline(MAX_ROW_BYTES)
        skipped += len(part)
    return skipped


def _json_rows(path: Path) -> Iterator[RawRow | BadRow]:
    for number, line in _text_lines(path):
        where = f"{path}:{number}"
        if isinstance(line, BadRow):
            yield line
        elif line.strip():
            yield _json_row(where, line)


def _json_row(where: str, line: str) -> RawRow | BadRow:
    try:
        values = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
    except json.JSONDecodeError as error:
        return BadRow(where, f"is not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return BadRow(where, "is not usable JSON: nested too deeply")
    if not isinstance(values, dict):
        return BadRow(where, f"is a JSON {type(values).__name__}; each line must be an object")
    return RawRow(where, values)


def _csv_rows(path: Path) -> Iterator[RawRow | BadRow]:
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _CsvLines(path)
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    fields: list[str] | None = []
    while fields is not None:
        lines.pulled.clear()
        try:
            fields = next(reader, None)
        except csv.Error as error:
            fields = None
            yield BadRow(f"{path}:{lines.pulled[0]}", f"is not CSV: {error}; nothing after it was read")
        yield from lines.take_bad()
        if fields and header is None:
            header = [name.strip() for name in fields]
        elif fields and header:
            yield _csv_row(f"{path}:{lines.pulled[0]}", header, fields)


def _csv_row(where: str, header: list[str], fields: list[str]) -> RawRow | BadRow:
    if len(fields) != len(header):
        return BadRow(where, f"has {len(fields)} fields, the header has {len(header)}")
    return RawRow(where, dict(zip(header, fields, strict=True)))


class _CsvLines:
    """The good lines of a file for `csv.reader`; a quoted field may span lines, so it notes the numbers of those pulled."""

    def __init__(self, path: Path) -> None:
        self.pulled: list[int] = []
        self._bad: list[BadRow] = []
        self._lines = _text_lines(path)

    def __iter__(self) -> Iterator[str]:
        for number, line in self._lines:
            if isinstance(line, BadRow):
                self._bad.append(line)
            else:
                self.pulled.append(number)
                yield line

    def take_bad(self) -> list[BadRow]:
        """Bad lines since the last call."""
        bad, self._bad = self._bad, []
        return bad


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as source:
        try:
            yield from pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            source.seek(0)
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(index) for index in range(reader.num_record_batches))


def _table_rows(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[RawRow | BadRow]:
    number = 0
    for batch in batches:
        for values in batch.to_pylist():
            number += 1
            yield RawRow(f"{path}:row {number}", values)
