"""Dataset rows: their columns, how they follow from generated rows and seeds, and Parquet files of them."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from generation.prompts.prompt_set import PromptSet
from generation.rows import Row
from generation.storage import Store
from generation.task import Seed, Split, Task

ROWS_PER_GROUP = 5_000


def _field(name: str, kind: Any, description: str, unit: str = "text") -> pa.Field:
    return pa.field(name, kind, metadata={"description": description, "unit": unit})


_MESSAGE = pa.struct(
    [
        _field("role", pa.string(), "Who speaks: `user` or `assistant`", "name"),
        _field("content", pa.string(), "What is said"),
    ]
)
_TOKENS = pa.struct(
    [
        _field("prompt", pa.int32(), "Prompt tokens of all requests for the row, cached ones included", "tokens"),
        _field("cached", pa.int32(), "Those of them that came from the prefix cache", "tokens"),
        _field("output", pa.int32(), "Tokens generated for the row", "tokens"),
    ]
)
_MESSAGES = pa.list_(_field("item", _MESSAGE, "One message"))
_PRINCIPLES = pa.list_(_field("item", pa.string(), "One principle's id", "blake2b-128, hex"))

DATASET_SCHEMA = pa.schema(
    [
        _field("messages", _MESSAGES, "The training view: what the user asks and what the model shall say; no principles", "messages"),
        _field("task", pa.string(), "Task name in the recipe", "name"),
        _field("input", pa.string(), "The instance's input"),
        _field("answer", pa.string(), "The canonical answer: the majority's, or the human's"),
        _field("rationale", pa.string(), "How the answer comes about: the shortest completion that gave it, or empty"),
        _field("row_id", pa.string(), "Id of the row: of (run, unit, index), or of the seed", "blake2b-128, hex"),
        _field("unit", pa.string(), "Unit that wrote the row; empty for human rows", "record-unit numbers"),
        _field("bundle", pa.string(), "Bundle of principles that the prompts held; empty for human rows", "blake2b-128, hex"),
        _field("principles", _PRINCIPLES, "Principles that the draft prompt held, in order", "ids"),
        _field("cell", pa.string(), "Cell of the plan: bundle, difficulty and target label", "id"),
        _field("agreement", pa.float32(), "Share of the votes that gave the answer; 1 for human rows", "share, 0 to 1"),
        _field("model", pa.string(), "Weight digest of the model that wrote the row; empty for human rows", "digest"),
        _field("sampling", pa.string(), "Sampling parameters of the requests", "JSON object"),
        _field("tokens", _TOKENS, "What the row cost", "tokens"),
        _field("round", pa.int32(), "Evolution round, from 0", "round"),
        _field("source", pa.string(), "Who wrote the row: `synthetic` or `human`", "name"),
    ]
)  # fmt: skip
"""Columns of every dataset file; each field says in its metadata what it holds and in which unit."""


@dataclass(frozen=True, slots=True)
class DatasetFile:
    """A Parquet file that was written.

    Attributes:
        name: File name inside the dataset folder.
        task: Task of all its rows.
        rows: Number of rows.
        bytes: Size.
        sha256: Of its content, hex.
    """

    name: str
    task: str
    rows: int
    bytes: int
    sha256: str


def dataset_record(row: Row, task: Task, prompts: PromptSet) -> dict[str, Any]:
    """A row as one record of `DATASET_SCHEMA`."""
    question = prompts.render("student", task=task, input=row.input)
    answer = prompts.render("student_answer", task=task, answer=row.answer, rationale=row.rationale)
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        "tokens": {"prompt": row.prompt_tokens, "cached": row.cached_tokens, "output": row.output_tokens},
        "principles": list(row.principles),
        **{name: getattr(row, name) for name in _SAME_AS_ROW},
    }


_SAME_AS_ROW = tuple(name for name in DATASET_SCHEMA.names if name not in {"messages", "tokens", "principles"})


def seed_row(seed: Seed, task: Task, index: int) -> Row:
    """A human example as a row."""
    return Row(
        row_id=seed.seed_id, unit="", index=index, task=task.name, status="instance", input=seed.input,
        answer=seed.output, rationale=seed.rationale, agreement=1.0, source="human",
    )  # fmt: skip


def write_file(store: Store, name: str, task: str, records: Iterator[Mapping[str, Any]]) -> DatasetFile | None:
    """Write all the records to one file; None, and no file, when there are none.

    Holds one row group of records and the compressed file in memory.
    """
    sink = pa.BufferOutputStream()
    rows = 0
    with pq.ParquetWriter(sink, DATASET_SCHEMA, compression="zstd") as writer:
        while group := list(islice(records, ROWS_PER_GROUP)):
            writer.write_batch(pa.RecordBatch.from_pylist(group, schema=DATASET_SCHEMA))
            rows += len(group)
    if rows == 0:
        return None
    content = sink.getvalue().to_pybytes()
    store.write_new(name, content)
    return DatasetFile(name, task, rows, len(content), sha256(content).hexdigest())


def human_records(tasks: Iterable[Task], prompts: PromptSet, splits: Collection[Split]) -> Iterator[dict[str, Any]]:
    """Seeds of some splits."""
    for task in tasks:
        for index, seed in enumerate(task.seeds):
            if seed.split in splits:
                yield dataset_record(seed_row(seed, task, index), task, prompts)
