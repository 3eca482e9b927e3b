"""Files on a local or mounted filesystem that appear whole or not at all, and are still there after a power loss."""

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path
from types import TracebackType


class Draft:
    """A file on its way: written under a temporary name beside its own, synced, and only then shown under its own.

    Every method may be called again after an OSError. The temporary file is removed at the end of the `with` block.

    Args:
        target: The file's own path.
        content: All of it.
    """

    def __init__(self, target: Path, content: bytes) -> None:
        self._target = target
        self._content = content
        self._temporary: Path | None = None

    def __enter__(self) -> "Draft":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._temporary is not None:
            _remove(self._temporary)

    def show_new(self) -> None:
        """Show the file, which must not exist yet.

        Raises:
            FileExistsError: Somebody else's file is there. One that an earlier attempt, or the client of a network filesystem by
                itself, has shown although the answer was lost, is known to be this one: it is the same inode.
        """
        temporary = self._written()
        try:
            os.link(temporary, self._target)
        except FileExistsError:
            if not temporary.samefile(self._target):
                raise
        _sync_folder(self._target.parent)

    def show(self) -> None:
        """Show the file, in place of one that may be there."""
        temporary, self._temporary = self._written(), None
        try:
            temporary.replace(self._target)
        except OSError:
            _remove(temporary)
            raise
        _sync_folder(self._target.parent)

    def _written(self) -> Path:
        """The temporary file with all of the content, durable.

        One that failed is not used again: once a sync has failed, a second one may succeed although the data are lost.
        """
        if self._temporary is None:
            _make_folder(self._target.parent)
            # Not mkstemp: its files are readable by their owner alone, and a run on a shared filesystem has other readers.
            temporary = self._target.with_name(f".{self._target.name}.{secrets.token_hex(8)}")
            try:
                _write_durably(temporary, self._content)
            except OSError:
                _remove(temporary)
                raise
            self._temporary = temporary
        return self._temporary


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError as error:
        if not folder.is_dir():  # to a writer, FileExistsError would say that its own file is there
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error
    _sync_folder(folder.parent)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; without that, a file whose content is synced may still be gone after a power loss."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some filesystems cannot sync folders
            raise
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
