"""The dataset that a run hands over: exactly N rows per task as Parquet, a card, a summary and a seal.

`dataset/round-0/train-*.parquet` opens with `datasets.load_dataset` as it is: by the folder, by `data_dir` and by `data_files`. The names
begin with `train` because `datasets` takes files so named for the data and leaves the JSON files beside them alone.

When a target grows, the rows in place stay and the new ones are added in new files (`dataset_seal`): the fold keeps under a larger target
what it kept under a smaller one, and then more. That is checked before anything is written.
"""

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from generation.curation.counts import StageCounts, merge_counts
from generation.dataset_card import dataset_card
from generation.dataset_rows import DATASET_SCHEMA, DatasetFile, dataset_record, write_file
from generation.dataset_seal import (
    FORMAT_VERSION,
    SealedDataset,
    has_targets,
    read_sealed,
    seal_name,
    seals,
)  # fmt: skip
from generation.dataset_tally import Oracle, Tally, TruthCount, label_facts, total_digest
from generation.errors import RunLockedError, StorageError, YieldError
from generation.prompts.prompt_set import PromptSet
from generation.rows import Row
from generation.storage import Store
from generation.task import Task

__all__ = [
    "DATASET_FOLDER", "DATASET_SCHEMA", "DatasetFile", "DatasetSummary", "Oracle", "SealedDataset", "TaskRows", "Written",
    "read_sealed", "sealed_targets", "unwatched", "write_dataset",
]  # fmt: skip

DATASET_FOLDER = "dataset/round-0"
MAX_ROWS_PER_FILE = 100_000

Written = Callable[[DatasetFile], None]
"""Takes each file as soon as it is on storage, before the dataset is sealed: it may still turn out to be of no sealed dataset."""


def unwatched(file: DatasetFile) -> None:
    """What takes written files where nobody waits for them."""


@dataclass(frozen=True, slots=True)
class TaskRows:
    """What one task gives to the dataset.

    Attributes:
        task: The task.
        target: Rows of it in the dataset.
        rows: The kept rows in plan order, from the first; read once, as a stream.
        stages: `counts` of the fold that kept them.
        first_answers: How many of the first answers are true, over all rows that were voted on; None where it was not counted.
    """

    task: Task
    target: int
    rows: Iterable[Row]
    stages: StageCounts
    first_answers: TruthCount | None = None


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """A sealed dataset in numbers; `summary.json` in the dataset's folder holds more.

    Attributes:
        uri: The dataset's folder.
        rows: Rows of all tasks.
        tasks: Rows by task.
        overshoot: Rows that were accepted beyond the targets.
        digest: As in `SealedDataset`.
        label_accuracy: Share of the answers that equal the oracle's; None without an oracle.
    """

    uri: str
    rows: int
    tasks: dict[str, int]
    overshoot: int
    digest: str
    label_accuracy: float | None


def write_dataset(
    store: Store,
    parts: Sequence[TaskRows],
    prompts: PromptSet,
    provenance: Mapping[str, Any],
    oracle: Oracle | None = None,
    on_file: Written = unwatched,
) -> DatasetSummary:
    """Write and seal the dataset of an arm, or return what is sealed when it has these targets.

    Only the run's driver may call this: files of an attempt that was not sealed are swept.

    Args:
        store: The arm's folder.
        parts: One for each task.
        prompts: Renders the training view.
        provenance: JSON object of what the rows come from (identity hash, model digests, ...), kept in the seal, summary and card.
        oracle: True answers, to measure labels with. Never decides on a row.
        on_file: Is told of each file that is written.

    Raises:
        YieldError: A task has fewer rows than its target.
        RecipeError: A target is smaller than what is sealed.
        StorageError: The rows do not begin with those that are sealed.
        RunLockedError: Another driver has sealed the dataset meanwhile.
    """
    folder = store.child(DATASET_FOLDER)
    left_behind, states = folder.names(""), seals(folder)
    seal = next(reversed(states), None)
    if seal is not None and has_targets(folder, seal, {part.task.name: part.target for part in parts}):
        _publish(folder, seal, left_behind)
        return _summary(folder, seal)
    sealed_tasks = seal["tasks"] if seal else {}
    files = [DatasetFile(**file) for file in (seal["files"] if seal else [])]
    tallies = [Tally(part.task.config, oracle, part.first_answers) for part in parts]
    for part, tally in zip(parts, tallies, strict=True):
        _write_task(folder, _new_records(part, prompts, tally, sealed_tasks.get(part.task.name)), part, files, on_file)
    facts = _facts(parts, tallies, provenance) | {"files": [asdict(file) for file in files]}
    _publish(folder, facts, left_behind)
    return _sealed(folder, facts, len(states))


def sealed_targets(store: Store, task_name: str) -> list[int]:
    """Rows of a task in each sealed state of an arm's dataset, oldest first; what `CausalFold` needs when a target grows."""
    states = seals(store.child(DATASET_FOLDER))
    return sorted({state["tasks"][task_name]["rows"] for state in states if task_name in state["tasks"]})


def _write_task(
    folder: Store, records: Iterator[dict[str, Any]], part: TaskRows, files: list[DatasetFile], on_file: Written
) -> None:
    """Add the files of a task, with the next numbers, so that the order of their names is the order of the rows.

    No task name in them: `datasets` would take `train-test-...` for a test split.
    """
    # Another attempt may have left its files here; a name of our own cannot meet them.
    attempt = secrets.token_hex(4)
    while True:
        name = f"train-{len(files):05d}-{attempt}.parquet"
        file = write_file(folder, name, part.task.name, islice(records, MAX_ROWS_PER_FILE))
        if file is None:
            return
        files.append(file)
        on_file(file)


def _new_records(
    part: TaskRows, prompts: PromptSet, tally: Tally, sealed: Mapping[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """Records that are not sealed yet, once those that are have been seen to be the same."""
    old_rows = sealed["rows"] if sealed else 0
    for row in islice(part.rows, part.target):
        record = dataset_record(row, part.task, prompts)
        tally.add(row, record["messages"])
        if tally.rows > old_rows:
            yield record
        elif sealed and tally.rows == old_rows and tally.digest != sealed["digest"]:
            raise StorageError(
                f"dataset of task '{part.task.name}': the first {old_rows} curated rows are not those that were sealed; use a new "
                "run folder, or delete the dataset folder to write it anew"
            )
    if tally.rows < part.target:
        raise YieldError(
            f"dataset: task '{part.task.name}' has {tally.rows} of {part.target} curated rows; continue generation, or lower "
            "generation.accepted_rows"
        )


def _sealed(folder: Store, facts: Mapping[str, Any], number: int) -> DatasetSummary:
    """The dataset with its seal, which is written last of all."""
    try:
        folder.write_new(seal_name(number), _json(facts))
    except FileExistsError as error:
        raise RunLockedError(
            f"{folder.uri}: another driver has sealed this dataset meanwhile; let it finish"
        ) from error
    return _summary(folder, facts)


def _publish(folder: Store, facts: Mapping[str, Any], left_behind: Sequence[str]) -> None:
    """Sweep what an interrupted attempt left, and write the summary and the card; also mends what an interrupted growth left.

    Only what was there before this attempt began: what came later may be of a driver that has taken the run over.
    """
    names = {file["name"] for file in facts["files"]}
    for name in left_behind:
        if name.endswith(".parquet") and name not in names:
            folder.delete(name)
    folder.replace("summary.json", _json(facts))
    folder.replace("README.md", dataset_card(facts).encode())


def _json(facts: Mapping[str, Any]) -> bytes:
    """Indented, and in the order in which rows pass the stages: people read it."""
    return json.dumps(facts, indent=1, ensure_ascii=False).encode()


def _facts(parts: Sequence[TaskRows], tallies: Sequence[Tally], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `summary.json` and of the seal, but for the files."""
    tasks = {
        part.task.name: {**tally.facts(), "overshoot": _overshoot(part.stages), "stages": part.stages}
        for part, tally in zip(parts, tallies, strict=True)
    }
    stages = merge_counts([part.stages for part in parts])
    return {
        "format_version": FORMAT_VERSION,
        "rows": sum(tally.rows for tally in tallies),
        "overshoot": _overshoot(stages),
        "digest": total_digest(tallies),
        **label_facts(tallies),
        "tasks": tasks,
        "stages": stages,
        "provenance": dict(provenance),
    }


def _summary(folder: Store, facts: Mapping[str, Any]) -> DatasetSummary:
    tasks = {name: task["rows"] for name, task in facts["tasks"].items()}
    return DatasetSummary(
        folder.uri, facts["rows"], tasks, facts["overshoot"], facts["digest"], facts["label_accuracy"]
    )


def _overshoot(stages: StageCounts) -> int:
    return sum(stages.get("overshoot", {}).get("reasons", {}).values())
