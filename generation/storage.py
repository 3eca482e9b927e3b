"""A run folder on any pyarrow filesystem. Every object is written once, complete, under its final name.

The one exception is a driver's heartbeat, which `replace` overwrites. Knows nothing of what the files mean.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from generation.errors import StorageError


@dataclass(frozen=True)
class Store:
    """Files below one root. Paths are relative to it, with forward slashes.

    Attributes:
        uri: The root as the user wrote it: a local path or an URI that pyarrow understands.
    """

    uri: str

    @property
    def filesystem(self) -> fs.FileSystem:
        """The pyarrow filesystem of the root."""
        return self._resolved()[0]

    def path(self, relative: str) -> str:
        """The full path of a file on `filesystem`."""
        return f"{self._resolved()[1]}/{relative}" if relative else self._resolved()[1]

    def child(self, relative: str) -> "Store":
        """The store of a folder below this one."""
        return Store(f"{self.uri.rstrip('/')}/{relative}")

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
        infos: Any = self._look(folder, fs.FileSelector(self.path(folder), allow_not_found=True))
        return sorted(i.base_name for i in infos if i.type == fs.FileType.File and not i.base_name.startswith("."))

    def read(self, relative: str) -> bytes:
        """A whole file.

        Raises:
            StorageError: It cannot be read.
        """
        try:
            with self.filesystem.open_input_stream(self.path(relative)) as stream:
                return stream.read()
        except OSError as error:
            raise StorageError(f"{self.uri}/{relative}: cannot read: {error}") from error

    def write_new(self, relative: str, content: bytes) -> None:
        """Write a file that must not exist yet; it appears whole or not at all.

        Raises:
            FileExistsError: Somebody else wrote it first.
            StorageError: It cannot be written.
        """
        with self._written(relative, content) as (temporary, target):
            os.link(temporary, target)

    def replace(self, relative: str, content: bytes) -> None:
        """Write a file whether it exists or not; readers see the old or the new one, whole.

        Raises:
            StorageError: It cannot be written.
        """
        with self._written(relative, content) as (temporary, target):
            temporary.replace(target)

    def delete(self, relative: str) -> None:
        """Delete a file; one that is gone already is none to complain of.

        Raises:
            StorageError: It cannot be deleted.
        """
        try:
            self.filesystem.delete_file(self.path(relative))
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"{self.uri}/{relative}: cannot delete: {error}") from error

    def read_json(self, relative: str) -> Any:
        """A JSON file."""
        return json.loads(self.read(relative))

    def read_lines(self, relative: str) -> list[Any]:
        """A JSONL file."""
        return [json.loads(line) for line in self.read(relative).splitlines() if line.strip()]

    def _look(self, relative: str, what: Any) -> Any:
        try:
            return self.filesystem.get_file_info(what)
        except OSError as error:
            raise StorageError(f"{self.uri}/{relative}: cannot read: {error}") from error

    def _resolved(self) -> tuple[fs.FileSystem, str]:
        if "://" not in self.uri:
            return fs.LocalFileSystem(), str(Path(self.uri).absolute())
        try:
            filesystem, path = fs.FileSystem.from_uri(self.uri)
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.uri}: cannot be opened: {error}; check run.output") from error
        return filesystem, path.rstrip("/")

    @contextmanager
    def _written(self, relative: str, content: bytes) -> Generator[tuple[Path, Path]]:
        """The content in a temporary file, and its final path beside it."""
        if not self.is_local:
            raise StorageError(f"{self.uri}: only local and mounted filesystems can be written; set run.output to one")
        target = Path(self.path(relative))
        # Not mkstemp: its files are readable by their owner alone, and a run on a shared filesystem has other readers.
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        try:
            _make_folder(target.parent)
            _write_durably(temporary, content)
            yield temporary, target
        except FileExistsError:
            raise
        except OSError as error:
            raise StorageError(f"{self.uri}/{relative}: cannot write: {error}") from error
        finally:
            with suppress(OSError):  # it is gone after a replace, and never was where its folder could not be made
                temporary.unlink()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # to a writer, that would say that its own file is there
        raise NotADirectoryError(*error.args) from error


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def json_bytes(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def json_lines(values: Iterable[Any]) -> bytes:
    """JSONL of canonical JSON."""
    return b"".join(json_bytes(value) + b"\n" for value in values)


def digest(*parts: str) -> str:
    """The id, blake2b-128 in hex, of whatever the parts determine; ("a", "b") and ("ab",) differ."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).hexdigest()
