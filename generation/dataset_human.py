"""The human examples in the dataset's own columns: those that a model is trained on, and those that it must never see."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from generation.curation.counts import funnel
from generation.dataset import DatasetSummary, TaskRows, Written, unwatched, write_dataset
from generation.dataset_rows import human_records, seed_row, write_file
from generation.prompts.prompt_set import PromptSet
from generation.storage import Store
from generation.task import Split, Task

HUMAN_FILE = "dataset/human/seeds.parquet"
HELD_OUT_FILE = "dataset/human/held-out.parquet"


def human_rows(store: Store, tasks: Sequence[Task], prompts: PromptSet) -> str | None:
    """Write the seeds of the splits `mine` and `demo`, once.

    Returns:
        URI of the file, or None where there are no such seeds.
    """
    return _write_seeds(store, HUMAN_FILE, tasks, prompts, {"mine", "demo"})


def held_out_rows(store: Store, tasks: Sequence[Task], prompts: PromptSet) -> str | None:
    """Write the seeds of the split `validate`, once: they choose principles, and tell how well a trained model has generalised.

    Returns:
        URI of the file, or None where there are no such seeds.
    """
    return _write_seeds(store, HELD_OUT_FILE, tasks, prompts, {"validate"})


def write_human_dataset(
    store: Store,
    tasks: Sequence[Task],
    prompts: PromptSet,
    provenance: Mapping[str, Any],
    on_file: Written = unwatched,
) -> DatasetSummary:
    """Write and seal a dataset of the human examples alone, of all splits: where nothing is selected, none need be held back."""
    rows = {task.name: [seed_row(seed, task, i) for i, seed in enumerate(task.seeds)] for task in tasks}
    parts = [TaskRows(task, len(rows[task.name]), rows[task.name], funnel(len(rows[task.name]), {})) for task in tasks]
    return write_dataset(store, parts, prompts, provenance, on_file=on_file)


def _write_seeds(
    store: Store, name: str, tasks: Sequence[Task], prompts: PromptSet, splits: Collection[Split]
) -> str | None:
    if not store.exists(name) and write_file(store, name, "", human_records(tasks, prompts, splits)) is None:
        return None
    return store.uri_of(name)
