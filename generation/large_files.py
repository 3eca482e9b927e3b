"""Files of any size on their way between a bucket and a local disk, of which memory holds a part."""

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from generation.storage import Store

_PART_BYTES = 64 * 1024 * 1024
"""Of a download, which the SDKs of pyarrow ask for again where it fails, three times; then we, for the file."""
_FILES_AT_ONCE = 4
_SECONDS = 1800.0
"""In which a file is tried again: it may take minutes, and what is lost with it are hours of training."""


def upload(store: Store, files: dict[str, Path]) -> None:
    """Put local files into a bucket under their names there, in place of those that may be there.

    Raises:
        StorageError: One cannot be written.
    """
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        list(pool.map(lambda name: _upload(store, name, files[name]), files))


def download(store: Store, files: dict[str, Path]) -> None:
    """Copy files of a bucket to local ones.

    Raises:
        StorageError: One cannot be read.
        OSError: One cannot be written.
    """
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        list(pool.map(lambda name: _download(store, name, files[name]), files))


def _upload(store: Store, name: str, source: Path) -> None:
    if not source.stat().st_size:
        store.replace(name, b"")  # nothing to map
        return
    filesystem: Any = store.filesystem

    def put() -> None:
        # One write of the mapped file: pyarrow cuts it into parts that it sends side by side, and copies none of them. Nothing is there under
        # the name before all of them have come.
        with pa.memory_map(str(source)) as mapped, filesystem.open_output_stream(store.path(name)) as sink:
            sink.write(mapped.read_buffer())

    store.patient(_SECONDS).patience.run(put, f"{store.uri_of(name)}: cannot write")


def _download(store: Store, name: str, target: Path) -> None:
    filesystem: Any = store.filesystem

    def fetch() -> None:
        with filesystem.open_input_stream(store.path(name)) as stream, target.open("wb") as sink:
            while part := stream.read(_PART_BYTES):
                sink.write(part)
        if target.stat().st_size != size:
            raise OSError(errno.EIO, f"{target.stat().st_size} of {size} bytes came")

    size = store.size(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    store.patient(_SECONDS).patience.run(fetch, f"{store.uri_of(name)}: cannot read")
