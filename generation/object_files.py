"""Objects of a bucket, each put whole under its final name by one request. Reading them is pyarrow's part, which cannot put conditionally."""

import os
import secrets
from types import TracebackType
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

from pyarrow import fs

from generation.errors import StorageError


class Objects(Protocol):
    """Puts and deletes the objects of a bucket; one request a call, never repeated by itself. May be used by several threads at once.

    Paths are those of the pyarrow filesystem: `bucket/key`. Every method raises OSError where it fails, with an errno or a text that
    `generation.retry` understands.

    Attributes:
        is_exclusive: Whether the store has been seen to refuse an object that is there.
    """

    is_exclusive: bool

    def put_new(self, path: str, content: bytes, writer: str) -> None:
        """Put an object that must not exist, with the name of its writer beside it.

        Raises:
            FileExistsError: One is there.
        """
        ...

    def put(self, path: str, content: bytes) -> None:
        """Put an object, in place of one that may be there."""
        ...

    def writer_of(self, path: str) -> str | None:
        """The name that was given to `put_new`; None where there is none, or no object."""
        ...

    def delete(self, path: str) -> None:
        """Delete an object, which may be gone already."""
        ...


class ObjectDraft:
    """An object on its way. Every method may be called again after an OSError; leaving the `with` block does nothing.

    Args:
        objects: Of the bucket.
        path: Where the object goes.
        content: All of it.
    """

    def __init__(self, objects: Objects, path: str, content: bytes) -> None:
        self._objects = objects
        self._path = path
        self._content = content
        self._writer = secrets.token_hex(16)

    def __enter__(self) -> "ObjectDraft":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show_new(self) -> None:
        """Put the object, which must not exist yet.

        Raises:
            FileExistsError: Somebody else's object is there. One that an earlier attempt has put although the answer was lost is known to
                be this one by its writer.
            StorageError: The store overwrites what it was asked not to.
        """
        try:
            self._objects.put_new(self._path, self._content, self._writer)
        except FileExistsError:
            if self._objects.writer_of(self._path) != self._writer:
                raise
        if not self._objects.is_exclusive:
            self._expect_refusal()

    def show(self) -> None:
        """Put the object, in place of one that may be there."""
        self._objects.put(self._path, self._content)

    def _expect_refusal(self) -> None:
        """Have the object refused that was just put: stores that do not know the condition accept everything, and two drivers with it."""
        try:
            self._objects.put_new(self._path, self._content, self._writer)
        except FileExistsError:
            self._objects.is_exclusive = True
            return
        raise StorageError(
            f"{self._path}: this object store overwrites objects that it is asked to put only where none is, so two drivers could not be told "
            "apart; use one with conditional writes (If-None-Match), or set run.output to a mounted filesystem"
        )


def open_objects(uri: str, filesystem: fs.FileSystem) -> Objects | None:
    """What writes to the bucket of an URI that pyarrow reads; None where it is the URI of no bucket.

    Raises:
        StorageError: A package is missing.
        OSError: There are no credentials.
    """
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query))
    if isinstance(filesystem, fs.S3FileSystem):
        from generation.s3 import open_s3

        return open_s3(str(filesystem.region), tuple(sorted(options.items())), os.getpid())
    if isinstance(filesystem, fs.GcsFileSystem):
        from generation.gcs import open_gcs

        return open_gcs(parts.username == "anonymous", tuple(sorted(options.items())), os.getpid())
    return None
