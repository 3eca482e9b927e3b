"""Tokenises the dataset once, file by file, into Arrow files that every rank maps into memory.

The ranks share the work without talking: each writes its files under names that follow from their content, and waits until all are there.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from generation.dataset import read_sealed
from generation.errors import TrainingError
from generation.storage import Store, digest
from training.chat import ChatEncoder
from training.job import TrainingJob

TOKEN_SCHEMA = pa.schema([pa.field("input_ids", pa.list_(pa.int32())), pa.field("prompt_tokens", pa.int32())])
_VERSION = "1"
_BATCH_ROWS = 1024
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Source:
    """A parquet file with a `messages` column.

    Attributes:
        uri: Where it is.
        digest: Of its content.
        repeats: How often its rows are in the training set.
    """

    uri: str
    digest: str
    repeats: int = 1

    @property
    def store(self) -> Store:
        """The folder that it lies in."""
        return Store(self.uri.rpartition("/")[0])

    @property
    def name(self) -> str:
        """Its name there."""
        return self.uri.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A prepared file.

    Attributes:
        path: Uncompressed Arrow IPC of `TOKEN_SCHEMA`.
        digest: Of what it holds.
        repeats: How often its rows are in the training set.
        rows: Rows in it.
        too_long: Rows that were left out because they exceed `max_tokens`.
    """

    path: Path
    digest: str
    repeats: int
    rows: int
    too_long: int


def find_sources(job: TrainingJob) -> list[Source]:
    """The files that a job trains on: the sealed dataset's, then the human examples.

    Raises:
        NotSealedError: The dataset is not sealed.
    """
    sealed = read_sealed(job.dataset)
    sources = [Source(uri, digest(sealed.digest, uri.rpartition("/")[2])) for uri in sealed.files]
    if job.human and job.config.seed_repeats:
        human = Source(job.human, "", job.config.seed_repeats)
        sources.append(replace(human, digest=digest(human.store.read(human.name).hex())))
    return sources


def prepare(job: TrainingJob, encoder: ChatEncoder, rank: int, world: int) -> list[TokenFile]:
    """Tokenise this rank's part of the files, and wait for the others' parts.

    Raises:
        TrainingError: No row is left to train on, or the chat template does not fit.
    """
    folder = Path(job.checkpoints) / "tokens"
    folder.mkdir(parents=True, exist_ok=True)
    sources = find_sources(job)
    keys = [digest(_VERSION, source.digest, encoder.digest, str(job.config.max_tokens)) for source in sources]
    for source, key in list(zip(sources, keys, strict=True))[rank::world]:
        if not (folder / f"{key}.json").exists():
            _prepare_file(source, folder / key, encoder, job.config.max_tokens)
    files = [_await_file(folder / key, source.repeats) for source, key in zip(sources, keys, strict=True)]
    if not sum(file.rows * file.repeats for file in files):
        raise TrainingError(
            f"{job.dataset}: no row to train on; {sum(file.too_long for file in files)} were longer than "
            f"training.max_tokens = {job.config.max_tokens}"
        )
    return files


def _prepare_file(source: Source, target: Path, encoder: ChatEncoder, max_tokens: int) -> None:
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    rows = too_long = 0
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, TOKEN_SCHEMA) as writer:
        for conversations in _read_messages(source):
            encoded = encoder.encode(conversations)
            kept = [row for row in encoded if len(row.input_ids) <= max_tokens]
            columns = [[row.input_ids for row in kept], [row.prompt_tokens for row in kept]]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, TOKEN_SCHEMA, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=TOKEN_SCHEMA))
            rows, too_long = rows + len(kept), too_long + len(encoded) - len(kept)
    temporary.replace(target.with_suffix(".arrow"))
    temporary.write_text(json.dumps({"source": source.name, "rows": rows, "too_long": too_long}))
    temporary.replace(target.with_suffix(".json"))


def _read_messages(source: Source) -> Iterator[list[Any]]:
    with source.store.filesystem.open_input_file(source.store.path(source.name)) as stream:
        file = pq.ParquetFile(stream)
        if "messages" not in file.schema_arrow.names:
            raise TrainingError(f"{source.uri}: no column `messages`; columns: {file.schema_arrow.names}")
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=["messages"]):
            yield batch.column("messages").to_pylist()


def _await_file(target: Path, repeats: int) -> TokenFile:
    while not target.with_suffix(".json").exists():  # the launcher ends this rank when the one that writes it has died
        time.sleep(_POLL_SECONDS)
    facts = json.loads(target.with_suffix(".json").read_text())
    return TokenFile(target.with_suffix(".arrow"), target.name, repeats, facts["rows"], facts["too_long"])
