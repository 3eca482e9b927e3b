"""Tokenises each file of a job once into an Arrow file that every rank maps into memory; alone: `python -m training.prepare JOB.json`.

A token file's name follows from what decides its content, so jobs share them and a file that is there is never made again. They may be
made by anyone before the ranks join: by tasks on a cluster, by this command, or by the ranks, each of which makes its part.
"""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pyarrow as pa

from generation.errors import PsiError, TrainingError
from generation.storage import digest
from training.chat import ChatEncoder, Encoded, load_encoder
from training.config import TrainingConfig
from training.job import TrainingJob
from training.sources import Source, find_sources

_SPAN = pa.struct([pa.field("start", pa.int32()), pa.field("end", pa.int32())])
TOKEN_SCHEMA = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("loss_spans", pa.list_(_SPAN)),
        pa.field("text_key", pa.uint64()),
    ]
)
"""Columns of a token file: tokens, the half-open spans of them that are supervised, and `Encoded.text_key`."""
_VERSION = "3"
_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 60.0
"""After so long without a sign of the one who makes a file, another rank makes it. A batch of rows, the sign, takes about a second."""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A prepared file.

    Attributes:
        path: Uncompressed Arrow IPC of `TOKEN_SCHEMA`.
        repeats: How often its rows are in the training set; 0 for a file that is held out.
        source: Who wrote the rows: `synthetic` or `human`.
        rows: Rows in it.
        too_long: Rows above `max_tokens`, which were left out or cut as `overlong` says.
        unsupervised: Rows that were left out because nothing in them is supervised.
        largest_token: Of the ids in it; -1 without rows.
    """

    path: Path
    repeats: int
    source: str
    rows: int
    too_long: int
    unsupervised: int
    largest_token: int


def prepare(job: TrainingJob, encoder: ChatEncoder, rank: int = 0, world: int = 1) -> list[TokenFile]:
    """Make those token files of a job that are not there. Ranks that do it at the same time share the work without talking.

    Returns:
        All of them, in the order of `find_sources`.

    Raises:
        NotSealedError: The dataset is not sealed.
        TrainingError: A row is too long and must not be, the chat template does not fit, or there is nothing to train on.
    """
    sources, folder = find_sources(job), Path(job.tokens)
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources[rank::world]:
        prepare_file(source, folder, encoder, job.config)
    _await_others(sources, folder, encoder, job.config)
    files = [_read_facts(source, token_path(source, folder, encoder, job.config)) for source in sources]
    trained = [file for file in files if file.repeats]
    if not sum(file.rows for file in trained):
        raise TrainingError(
            f"{job.dataset}: no row to train on; {sum(file.too_long for file in trained)} were longer than training.max_tokens = "
            f"{job.config.max_tokens}, in {sum(file.unsupervised for file in trained)} nothing is supervised"
        )
    return files


def prepare_file(source: Source, folder: Path, encoder: ChatEncoder, config: TrainingConfig) -> None:
    """Make the token file of a source in a folder, unless it is there.

    Raises:
        TrainingError: A row is too long and must not be, or the chat template does not fit.
    """
    target = token_path(source, folder, encoder, config)
    if _facts_path(target).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    temporary, counts, largest = target.with_suffix(f".{uuid4().hex}.tmp"), Counter[str](), -1
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, TOKEN_SCHEMA) as writer:
        for conversations in source.conversations():
            rows = _fitted(encoder.encode(conversations, config.loss_on), config, source, counts)
            batch = _record_batch(rows)
            ids = cast(Any, batch.column("input_ids")).values.to_numpy()
            largest = int(ids.max(initial=largest))
            writer.write_batch(batch)
    _show(temporary, target)
    temporary.write_text(json.dumps({"writer": source.writer(), "largest_token": largest, **counts}))
    _show(temporary, _facts_path(target))


def token_path(source: Source, folder: Path, encoder: ChatEncoder, config: TrainingConfig) -> Path:
    """Where the token file of a source is; the name changes whenever its content might."""
    rules = (config.loss_on, str(config.max_tokens), config.overlong)
    return folder / f"{digest(_VERSION, source.sha256, encoder.digest, *rules)}.arrow"


def is_prepared(source: Source, folder: Path, encoder: ChatEncoder, config: TrainingConfig) -> bool:
    """Whether the token file of a source is there."""
    return _facts_path(token_path(source, folder, encoder, config)).exists()


def _await_others(sources: Sequence[Source], folder: Path, encoder: ChatEncoder, config: TrainingConfig) -> None:
    """Wait for the files that other ranks make, and make them where nothing in the folder changes any more.

    That is so when a rank has died whose launcher did not notice, or when the ranks do not see the same folder.
    """
    seen, since = "", time.monotonic()
    while missing := [source for source in sources if not is_prepared(source, folder, encoder, config)]:
        signs = str(_sizes(folder))
        if signs != seen:
            seen, since = signs, time.monotonic()
        elif time.monotonic() - since > _PATIENCE_SECONDS:
            prepare_file(missing[0], folder, encoder, config)
            seen = str(_sizes(folder))
        time.sleep(_POLL_SECONDS)


def _sizes(folder: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for path in sorted(folder.iterdir()):
        with suppress(FileNotFoundError):  # it got its final name meanwhile
            sizes[path.name] = path.stat().st_size
    return sizes


def _fitted(rows: Sequence[Encoded], config: TrainingConfig, source: Source, counts: Counter[str]) -> list[Encoded]:
    """The rows that are trained on, none above `max_tokens`."""
    kept: list[Encoded] = []
    for row in rows:
        tokens = len(row.input_ids)
        if tokens > config.max_tokens:
            counts["too_long"] += 1
            if config.overlong == "error":
                raise TrainingError(
                    f"{source.uri}: a row of {tokens} tokens, training.max_tokens = {config.max_tokens}; raise it, or set "
                    "training.overlong to 'drop' or 'truncate'"
                )
            if config.overlong == "drop":
                continue
            row = row.truncated(config.max_tokens)
        if row.loss_spans:
            kept.append(row)
        else:
            counts["unsupervised"] += 1
    counts["rows"] += len(kept)
    return kept


def _record_batch(rows: Sequence[Encoded]) -> pa.RecordBatch:
    spans = [span for row in rows for span in row.loss_spans]
    starts, ends = ([span[side] for span in spans] for side in (0, 1))
    structs = pa.StructArray.from_arrays([pa.array(starts, pa.int32()), pa.array(ends, pa.int32())], fields=list(_SPAN))
    offsets = pa.array(accumulate((len(row.loss_spans) for row in rows), initial=0), pa.int32())
    columns = [
        pa.array([row.input_ids for row in rows], TOKEN_SCHEMA.field("input_ids").type),
        pa.ListArray.from_arrays(offsets, structs),
        pa.array([row.text_key for row in rows], pa.uint64()),
    ]
    return pa.record_batch(columns, schema=TOKEN_SCHEMA)


def _facts_path(target: Path) -> Path:
    """Beside a token file and written after it: what is in it. A token file without it does not exist."""
    return target.with_suffix(".json")


def _read_facts(source: Source, target: Path) -> TokenFile:
    facts = json.loads(_facts_path(target).read_text())
    counts = {name: facts.get(name, 0) for name in ("rows", "too_long", "unsupervised")}
    writer = "human" if source.human else facts["writer"]
    return TokenFile(target, source.repeats, writer, **counts, largest_token=facts["largest_token"])


def _show(temporary: Path, target: Path) -> None:
    """Give a file its final name once it is on disk: a name stands for a content, also after a power failure."""
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(target)


def main() -> None:
    """Prepare the job whose JSON file is the only argument."""
    try:
        job = TrainingJob.from_json(Path(sys.argv[1]).read_text())
        for file in prepare(job, load_encoder(job.model)):
            sys.stdout.write(
                f"{file.path}: {file.rows} rows, {file.too_long} too long, {file.unsupervised} unsupervised\n"
            )
    except PsiError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
