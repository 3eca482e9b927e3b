"""A run folder on a local or mounted filesystem, or in a bucket. Every file is written whole, under its final name.

pyarrow reads; files are written by `local_files`, objects by `object_files`. Knows nothing of what the files mean.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from generation.errors import StorageError
from generation.filesystems import open_filesystem, read_whole
from generation.local_files import Draft
from generation.object_files import ObjectDraft, Objects, open_objects
from generation.retry import PATIENT, Patience
from generation.uris import below, folder_and_name

T = TypeVar("T")


@dataclass(frozen=True)
class Store:
    """Files below one root. Paths are relative to it, with forward slashes.

    Attributes:
        uri: The root as the user wrote it: a local path or an URI that pyarrow understands.
        patience: How long each operation is tried again where it fails for a reason that may pass.
    """

    uri: str
    patience: Patience = PATIENT

    @property
    def filesystem(self) -> fs.FileSystem:
        """The pyarrow filesystem of the root."""
        return self._resolved()[0]

    def path(self, relative: str) -> str:
        """The full path of a file on `filesystem`."""
        return f"{self._resolved()[1]}/{relative}" if relative else self._resolved()[1]

    def child(self, relative: str) -> "Store":
        """The store of a folder below this one."""
        return replace(self, uri=self.uri_of(relative))

    def uri_of(self, relative: str) -> str:
        """The URI of a file or folder below the root."""
        return below(self.uri, relative)

    def patient(self, seconds: float) -> "Store":
        """The same store with another patience."""
        return replace(self, patience=replace(self.patience, seconds=seconds))

    @property
    def is_local(self) -> bool:
        """Whether the root lies on this machine's filesystem."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def local(self, relative: str) -> Path:
        """A file's path for libraries that only open local files.

        Raises:
            StorageError: The store is not local.
        """
        if not self.is_local:
            raise StorageError(f"{self.uri_of(relative)}: needed as a local file; set run.scratch to a local folder")
        return Path(self.path(relative))

    def exists(self, relative: str) -> bool:
        """Whether a file or folder is there.

        Raises:
            StorageError: That cannot be told.
        """
        info: Any = self._look(relative, self.path(relative))
        return info.type != fs.FileType.NotFound

    def size(self, relative: str) -> int | None:
        """Bytes of a file; None where there is none.

        Raises:
            StorageError: That cannot be told.
        """
        return self._look(relative, self.path(relative)).size

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in a folder, sorted; empty where it does not exist.

        Raises:
            StorageError: The folder cannot be read.
        """
        return sorted(name for name in self.sizes(folder) if not name.startswith("."))

    def sizes(self, folder: str) -> dict[str, int]:
        """Name and bytes of the files directly in a folder, also of those that writers have not shown or have left behind.

        Raises:
            StorageError: The folder cannot be read.
        """
        infos: Any = self._look(folder, fs.FileSelector(self.path(folder), allow_not_found=True))
        return {info.base_name: info.size for info in infos if info.type == fs.FileType.File}

    def tree(self) -> list[str]:
        """Paths of all files below the root, sorted.

        Raises:
            StorageError: It cannot be read.
        """
        root = self.path("")
        infos: Any = self._look("", fs.FileSelector(root, allow_not_found=True, recursive=True))
        return sorted(info.path.removeprefix(f"{root}/") for info in infos if info.type == fs.FileType.File)

    def read(self, relative: str) -> bytes:
        """A whole file.

        Raises:
            StorageError: It cannot be read.
        """
        return self.patience.run(
            lambda: read_whole(self.filesystem, self.path(relative)), f"{self.uri_of(relative)}: cannot read"
        )

    def open(self, relative: str) -> Any:
        """A file to read in parts, as pyarrow's readers do; one in a bucket is read whole first, for a part that fails is not tried again.

        Raises:
            StorageError: It cannot be read.
        """
        if not self.is_local:
            return pa.BufferReader(self.read(relative))
        return self.patience.run(
            lambda: self.filesystem.open_input_file(self.path(relative)), f"{self.uri_of(relative)}: cannot read"
        )

    def write_new(self, relative: str, content: bytes) -> None:
        """Write a file that must not exist yet; it appears whole or not at all, and once this returns, for good.

        Raises:
            FileExistsError: Somebody else wrote it first.
            StorageError: It cannot be written; or it is, and nothing said so.
        """
        with self._draft(relative, content) as draft:
            self.patience.run(draft.show_new, f"{self.uri_of(relative)}: cannot write")

    def replace(self, relative: str, content: bytes) -> None:
        """Write a file whether it exists or not; readers see the old or the new one, whole.

        Raises:
            StorageError: It cannot be written.
        """
        with self._draft(relative, content) as draft:
            self.patience.run(draft.show, f"{self.uri_of(relative)}: cannot write")

    def delete(self, relative: str) -> None:
        """Delete a file, which may be gone already.

        Raises:
            StorageError: It cannot be deleted.
        """
        bucket, path = self._bucket(), self.path(relative)

        def delete() -> None:
            with suppress(FileNotFoundError):
                bucket.delete(path) if bucket else self.filesystem.delete_file(path)

        self.patience.run(delete, f"{self.uri_of(relative)}: cannot delete")

    def read_json(self, relative: str) -> Any:
        """A JSON file."""
        return self._parsed(relative, json.loads)

    def read_lines(self, relative: str) -> list[Any]:
        """A JSONL file."""
        return self._parsed(
            relative, lambda content: [json.loads(line) for line in content.splitlines() if line.strip()]
        )

    def _parsed(self, relative: str, parse: Callable[[bytes], T]) -> T:
        """What a file says.

        pyarrow asks a bucket for the size of an object, and then for so many bytes: they are the beginning of a longer one that has replaced
        it in between. No beginning of JSON can be parsed; of lines, a reader may get as many as there were before.
        """
        try:
            return parse(self.read(relative))
        except ValueError:
            return parse(self.read(relative))

    def _look(self, relative: str, what: Any) -> Any:
        return self.patience.run(lambda: self.filesystem.get_file_info(what), f"{self.uri_of(relative)}: cannot read")

    def _resolved(self) -> tuple[fs.FileSystem, str]:
        return open_filesystem(self.uri, self.patience)

    def _draft(self, relative: str, content: bytes) -> Draft | ObjectDraft:
        bucket, path = self._bucket(), self.path(relative)
        return ObjectDraft(bucket, path, content) if bucket else Draft(Path(path), content)

    def _bucket(self) -> Objects | None:
        """What writes to it; None where that is the local filesystem."""
        if self.is_local:
            return None
        bucket = self.patience.run(lambda: open_objects(self.uri, self.filesystem), f"{self.uri}: cannot be opened")
        if bucket is None:
            raise StorageError(
                f"{self.uri}: only local and mounted filesystems, s3:// and gs:// can be written; set run.output to one"
            )
        return bucket


def file_at(uri: str) -> tuple[Store, str]:
    """The store of the folder that a file is in, and the file's name there."""
    folder, name = folder_and_name(uri)
    return Store(folder), name


def json_bytes(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def json_lines(values: Iterable[Any]) -> bytes:
    """JSONL of canonical JSON."""
    return b"".join(json_bytes(value) + b"\n" for value in values)


def digest(*parts: str) -> str:
    """The id, blake2b-128 in hex, of whatever the parts determine; ("a", "b") and ("ab",) differ."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).hexdigest()
