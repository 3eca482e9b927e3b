"""Which files a job trains on, and which it is only measured on."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pyarrow.parquet as pq

from generation.dataset import read_sealed
from generation.errors import TrainingError
from generation.storage import file_at
from training.job import TrainingJob

_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Source:
    """A parquet file with a `messages` column.

    Attributes:
        uri: Where it is.
        sha256: Of its content, hex.
        repeats: How often its rows are in the training set; 0 for a file that is held out.
        human: Whether people wrote all of it; else its column `source` says who did.
    """

    uri: str
    sha256: str
    repeats: int = 1
    human: bool = False

    def conversations(self) -> Iterator[list[Any]]:
        """Its `messages`, some rows at a time.

        Raises:
            TrainingError: It has no such column.
        """
        with self._open() as stream:
            file = pq.ParquetFile(stream)
            if "messages" not in file.schema_arrow.names:
                raise TrainingError(f"{self.uri}: no column `messages`; columns: {file.schema_arrow.names}")
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=["messages"]):
                yield batch.column("messages").to_pylist()

    def writer(self) -> str:
        """Who wrote its rows, `human` or `synthetic`; a file holds rows of one kind only."""
        if self.human:
            return "human"
        with self._open() as stream:
            file = pq.ParquetFile(stream)
            if "source" in file.schema_arrow.names:
                for batch in file.iter_batches(batch_size=1, columns=["source"]):
                    return batch.column("source")[0].as_py()
        return "synthetic"

    def _open(self) -> Any:
        store, name = file_at(self.uri)
        return store.open(name)


def find_sources(job: TrainingJob) -> list[Source]:
    """The files of a job: the sealed dataset's, then the human examples, then those that are held out.

    Raises:
        NotSealedError: The dataset is not sealed.
    """
    sealed = read_sealed(job.dataset)
    sources = [Source(uri, content) for uri, content in zip(sealed.files, sealed.hashes, strict=True)]
    if job.human and job.config.seed_repeats:
        sources.append(Source(job.human, _sha256(job.human), job.config.seed_repeats, human=True))
    if job.held_out:
        sources.append(Source(job.held_out, _sha256(job.held_out), repeats=0, human=True))
    return sources


def _sha256(uri: str) -> str:
    store, name = file_at(uri)
    return sha256(store.read(name)).hexdigest()
