"""Committed shards in about 55 bytes each: a name is a prefix that many share and a number, a digest is its bytes."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

_WHOLE = -1
"""The number of a shard whose name is not as replicas write it: its prefix is the whole name."""

_SUFFIX = ".arrow"
_DIGITS = slice(-6 - len(_SUFFIX), -len(_SUFFIX))

_SHA256_BYTES = 32
_INT32 = pa.int32()


class ShardTable:
    """Columns of shards, in the order of their commits; iterated, it gives their names.

    Attributes:
        first: For each shard, the place of its first unit in the order of commits.
    """

    def __init__(self) -> None:
        self.first = array("i")
        self._prefixes: dict[str, int] = {}
        self._texts: list[str] = []
        self._prefix = array("i")
        self._number = array("i")
        self._bytes = array("q")
        self._sha256 = bytearray()

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[str]:
        return (self.file(shard) for shard in range(len(self)))

    def file(self, shard: int) -> str:
        """A shard's path relative to the run folder."""
        prefix, number = self._texts[self._prefix[shard]], self._number[shard]
        return prefix if number == _WHOLE else _name(prefix, number)

    def sha256(self, shard: int) -> str:
        """Hex digest of a shard's bytes."""
        return self._sha256[_SHA256_BYTES * shard : _SHA256_BYTES * (shard + 1)].hex()

    def heads(self, shards: "np.ndarray[Any, np.dtype[np.int64]]") -> "np.ndarray[Any, np.dtype[np.uint64]]":
        """The first eight bytes of the digests of some shards, each as a number."""
        words = np.frombuffer(self._sha256, "<u8").reshape(-1, _SHA256_BYTES // 8)
        return words[shards, 0].astype(np.uint64)

    def append(self, shards: Sequence[tuple[str, str, int]], firsts: Iterable[int]) -> None:
        """Shards (name, SHA-256, bytes) are committed, whose first units stand at these places in the order of commits.

        Raises:
            ValueError: A digest is not one of SHA-256.
        """
        for file, digest, _ in shards:
            if len(digest) != 2 * _SHA256_BYTES:
                raise ValueError(f"{file}: {digest!r} is not a SHA-256")
            digits = file[_DIGITS]
            is_numbered = file.endswith(_SUFFIX) and digits.isdecimal() and digits.isascii()
            self._prefix.append(self._intern(file[: _DIGITS.start] if is_numbered else file))
            self._number.append(int(digits) if is_numbered else _WHOLE)
        self._sha256 += bytes.fromhex("".join([digest for _, digest, _ in shards]))
        self._bytes.extend([size for *_, size in shards])
        self.first.extend(firsts)

    def columns(self, start: int) -> dict[str, pa.Array]:
        """The shards from one on, as columns."""
        used, prefixes = np.unique(np.frombuffer(self._prefix, np.int32)[start:], return_inverse=True)
        texts = _to_strings([self._texts[prefix] for prefix in used])
        buffer = pa.py_buffer(bytes(self._sha256[_SHA256_BYTES * start :]))
        kind = pa.binary(_SHA256_BYTES)
        return {
            "file": pa.DictionaryArray.from_arrays(to_column(prefixes), texts),
            "number": to_column(np.frombuffer(self._number, np.int32)[start:]),
            "sha256": pa.FixedSizeBinaryArray.from_buffers(kind, len(self) - start, [None, buffer]),
            "bytes": to_column(np.frombuffer(self._bytes, np.int64)[start:], pa.int64()),
        }

    def extend(self, batch: pa.RecordBatch, firsts: "np.ndarray[Any, np.dtype[np.int32]]") -> None:
        """Append what `columns` gave."""
        files = batch.column("file")
        prefixes = np.array([self._intern(text) for text in files.dictionary.to_pylist()], np.int32)
        self._prefix.frombytes(prefixes[from_column(files.indices)].tobytes())
        self._number.frombytes(from_column(batch.column("number")).tobytes())
        self._bytes.frombytes(from_column(batch.column("bytes")).tobytes())
        digests = batch.column("sha256")
        start = _SHA256_BYTES * digests.offset
        self._sha256 += memoryview(digests.buffers()[1])[start : start + _SHA256_BYTES * len(digests)]
        self.first.frombytes(np.asarray(firsts, np.int32).tobytes())

    def _intern(self, prefix: str) -> int:
        number = self._prefixes.setdefault(prefix, len(self._texts))
        if number == len(self._texts):
            self._texts.append(prefix)
        return number


def to_column(values: "np.ndarray[Any, Any]", kind: pa.DataType = _INT32) -> pa.Array:
    """A copy of integers as a column. `pa.array` does it too, once it has imported pandas, where that is installed."""
    buffer = pa.py_buffer(values.astype(kind.to_pandas_dtype()).tobytes())
    return pa.Array.from_buffers(kind, len(values), [None, buffer])


def from_column(column: pa.Array) -> "np.ndarray[Any, np.dtype[Any]]":
    """The integers of a column without nulls, not copied. `Array.to_numpy` does it too, once it has imported pandas, in 40 MB."""
    values = np.frombuffer(column.buffers()[1], column.type.to_pandas_dtype())
    return values[column.offset : column.offset + len(column)]


def _to_strings(texts: list[str]) -> pa.Array:
    """A column of texts, without the pandas of `pa.array`."""
    contents = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, contents)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"".join(contents)))


def _name(prefix: str, number: int) -> str:
    return f"{prefix}{number:06d}{_SUFFIX}"
