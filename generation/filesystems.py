"""pyarrow's filesystems by URI."""

import errno
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from pyarrow import fs

from generation.errors import StorageError
from generation.retry import Patience
from generation.uris import has_credentials, without_credentials

_GOOGLE_RETRY_SECONDS = 5
"""Google's client would try for 15 minutes, whatever our patience."""


def open_filesystem(uri: str, patience: Patience) -> tuple[fs.FileSystem, str]:
    """The filesystem of an URI or local path, and the path on it.

    Raises:
        StorageError: It is no URI that pyarrow understands, holds credentials, or its bucket does not answer.
    """
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).absolute())
    if has_credentials(uri):
        raise StorageError(
            f"{without_credentials(uri)}: holds credentials, which would be kept in the run; leave them out, and name them in the "
            "environment, in ~/.aws, or by the role of the pod or machine"
        )
    try:
        return patience.run(lambda: _open(uri, os.getpid()), f"{uri}: cannot be opened")
    except ValueError as error:
        raise StorageError(f"{uri}: cannot be opened: {error}; check run.output") from error


def read_whole(filesystem: Any, path: str) -> bytes:
    """The content of a file, of which no byte is missing.

    Raises:
        OSError: It cannot be read, or ended early.
    """
    if isinstance(
        filesystem, fs.GcsFileSystem
    ):  # its random access files wait for the network without letting other threads run
        size = filesystem.get_file_info(path).size
        with filesystem.open_input_stream(path) as stream:
            content = stream.read()
    else:
        with filesystem.open_input_file(path) as stream:
            content, size = stream.read(), stream.size()
    if len(content) != size:
        raise OSError(errno.EIO, f"{len(content)} of {size} bytes came")
    return content


@lru_cache(maxsize=64)
def _open(uri: str, process: int) -> tuple[fs.FileSystem, str]:
    """Opened once by a process, but not for those that it forks."""
    del process
    if uri.startswith(("gs://", "gcs://")) and "retry_limit_seconds=" not in uri:
        uri += f"{'&' if '?' in uri else '?'}retry_limit_seconds={_GOOGLE_RETRY_SECONDS}"
    filesystem, path = fs.FileSystem.from_uri(uri)  # may ask for the bucket's region
    return filesystem, path.rstrip("/")
