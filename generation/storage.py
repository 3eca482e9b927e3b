"""A run folder on any pyarrow filesystem. Every object is written once, complete, under its final name.

The one exception is a driver's heartbeat, which `replace` overwrites. Knows nothing of what the files mean.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyarrow import fs

from generation.errors import StorageError
from generation.local_files import Draft
from generation.retry import PATIENT, Patience


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
        return replace(self, uri=f"{self.uri.rstrip('/')}/{relative}")

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
            raise StorageError(f"{self.uri}/{relative}: needed as a local file; set run.scratch to a local folder")
        return Path(self.path(relative))

    def exists(self, relative: str) -> bool:
        """Whether a file or folder is there.

        Raises:
            StorageError: That cannot be told.
        """
        info: Any = self._look(relative, self.path(relative))
        return info.type != fs.FileType.NotFound

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

    def read(self, relative: str) -> bytes:
        """A whole file.

        Raises:
            StorageError: It cannot be read.
        """

        def read() -> bytes:
            with self.filesystem.open_input_stream(self.path(relative)) as stream:
                return stream.read()

        return self.patience.run(read, f"{self.uri}/{relative}: cannot read")

    def write_new(self, relative: str, content: bytes) -> None:
        """Write a file that must not exist yet; it appears whole or not at all, and once this returns, for good.

        Raises:
            FileExistsError: Somebody else wrote it first.
            StorageError: It cannot be written; or it is, and nothing said so.
        """
        with self._draft(relative, content) as draft:
            self.patience.run(draft.show_new, f"{self.uri}/{relative}: cannot write")

    def replace(self, relative: str, content: bytes) -> None:
        """Write a file whether it exists or not; readers see the old or the new one, whole.

        Raises:
            StorageError: It cannot be written.
        """
        with self._draft(relative, content) as draft:
            self.patience.run(draft.show, f"{self.uri}/{relative}: cannot write")

    def delete(self, relative: str) -> None:
        """Delete a file, which may be gone already.

        Raises:
            StorageError: It cannot be deleted.
        """

        def delete() -> None:
            with suppress(FileNotFoundError):
                self.filesystem.delete_file(self.path(relative))

        self.patience.run(delete, f"{self.uri}/{relative}: cannot delete")

    def read_json(self, relative: str) -> Any:
        """A JSON file."""
        return json.loads(self.read(relative))

    def read_lines(self, relative: str) -> list[Any]:
        """A JSONL file."""
        return [json.loads(line) for line in self.read(relative).splitlines() if line.strip()]

    def _look(self, relative: str, what: Any) -> Any:
        return self.patience.run(lambda: self.filesystem.get_file_info(what), f"{self.uri}/{relative}: cannot read")

    def _resolved(self) -> tuple[fs.FileSystem, str]:
        if "://" not in self.uri:
            return fs.LocalFileSystem(), str(Path(self.uri).absolute())
        try:  # may ask the object store for the bucket's region
            filesystem, path = self.patience.run(
                lambda: fs.FileSystem.from_uri(self.uri), f"{self.uri}: cannot be opened"
            )
        except ValueError as error:
            raise StorageError(f"{self.uri}: cannot be opened: {error}; check run.output") from error
        return filesystem, path.rstrip("/")

    def _draft(self, relative: str, content: bytes) -> Draft:
        if not self.is_local:
            raise StorageError(f"{self.uri}: only local and mounted filesystems can be written; set run.output to one")
        return Draft(Path(self.path(relative)), content)


def json_bytes(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def json_lines(values: Iterable[Any]) -> bytes:
    """JSONL of canonical JSON."""
    return b"".join(json_bytes(value) + b"\n" for value in values)


def digest(*parts: str) -> str:
    """The id, blake2b-128 in hex, of whatever the parts determine; ("a", "b") and ("ab",) differ."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).hexdigest()
