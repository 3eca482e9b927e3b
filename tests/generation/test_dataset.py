import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from generation import dataset
from generation.config import AnswerConfig, CurationConfig, TaskConfig
from generation.curation.fold import CausalFold
from generation.curation.quotas import Quotas
from generation.dataset import (
    DATASET_SCHEMA,
    Oracle,
    TaskRows,
    read_sealed,
    sealed_targets,
    write_dataset,
)
from generation.dataset_human import held_out_rows, human_rows
from generation.errors import NotSealedError, RecipeError, StorageError, YieldError
from generation.instances.plan import unit_id
from generation.prompts.prompt_set import PromptSet
from generation.rows import Row
from generation.storage import Store
from generation.task import Seed, Task

PROVENANCE = {"identity": "abc123", "models": {"small": "d1"}}


@pytest.fixture
def prompts(tmp_path: Path) -> PromptSet:
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "student.jinja").write_text("{{ task.description }}: {{ input }}")
    (folder / "student_answer.jinja").write_text("{{ rationale }}={{ answer }}")
    (folder / "patterns.toml").write_text("")
    return PromptSet(str(folder))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "test" / "run"))


def make_task(name: str = "reverse") -> Task:
    config = TaskConfig(name=name, description="Reverse", answer=AnswerConfig(kind="exact"), seeds="s.jsonl")
    splits = ("mine", "validate", "demo", "mine")
    return Task(config, tuple(Seed(f"s{i}", f"seed{i}", f"{i}dees", split=split) for i, split in enumerate(splits)))


def make_rows(task: Task, count: int) -> list[Row]:
    return [
        Row(
            f"{task.name}{i}", unit_id(0, i // 8), i % 8, task.name, "instance", input=f"w{i}", answer=f"{i}w",
            rationale="so", agreement=0.75, bundle="b", principles=("p1", "p2"), prompt_tokens=9, output_tokens=4,
        )
        for i in range(count)
    ]  # fmt: skip


def part(task: Task, target: int, count: int | None = None, sealed: tuple[int, ...] = ()) -> TaskRows:
    """The rows of a task as the driver has them: folded, the kept ones streamed."""
    rows = make_rows(task, count or target + 2)
    fold = CausalFold(CurationConfig(), task, [], Quotas(target, tuple(sealed)))
    verdicts = fold.fold(rows)
    return TaskRows(task, target, (row for row, v in zip(rows, verdicts, strict=True) if v.kept), fold.counts)


def read_rows(store: Store) -> list[str]:
    files = read_sealed(f"{store.uri}/dataset/round-0").files
    return [row_id for file in files for row_id in pq.read_table(file).column("row_id").to_pylist()]


def test_the_dataset_has_exactly_the_rows_asked_for_and_is_sealed(store: Store, prompts: PromptSet) -> None:
    summary = write_dataset(store, [part(make_task(), 20), part(make_task("sort"), 10)], prompts, PROVENANCE)
    assert (summary.rows, summary.tasks, summary.overshoot) == (30, {"reverse": 20, "sort": 10}, 4)
    assert summary.label_accuracy is None
    sealed = read_sealed(summary.uri)
    assert (sealed.rows, sealed.digest) == (30, summary.digest)
    assert read_rows(store) == [f"reverse{i}" for i in range(20)] + [f"sort{i}" for i in range(10)]
    written = store.read_json("dataset/round-0/summary.json")
    assert written["stages"]["overshoot"] == {"in": 34, "out": 30, "reasons": {"beyond the target": 4}}
    assert written["provenance"] == PROVENANCE


def test_datasets_opens_it_by_folder_by_data_dir_and_by_files(
    store: Store, prompts: PromptSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(dataset, "MAX_ROWS_PER_FILE", 8)
    uri = write_dataset(store, [part(make_task("test"), 20), part(make_task("dev"), 4)], prompts, PROVENANCE).uri
    cache = str(tmp_path / "cache")
    opened = [
        datasets.load_dataset(uri, cache_dir=cache),
        datasets.load_dataset("parquet", data_dir=uri, cache_dir=cache),
        datasets.load_dataset("parquet", data_files=f"{uri}/*.parquet", cache_dir=cache),
    ]
    for found in opened:
        assert list(found) == ["train"]
        assert found["train"].num_rows == 24
        assert found["train"].column_names == DATASET_SCHEMA.names
    assert opened[0]["train"][0]["messages"] == [
        {"role": "user", "content": "Reverse: w0"},
        {"role": "assistant", "content": "so=0w"},
    ]


def test_every_column_says_what_it_holds_and_in_which_unit_in_the_files_too(store: Store, prompts: PromptSet) -> None:
    write_dataset(store, [part(make_task(), 3)], prompts, PROVENANCE)
    file = read_sealed(f"{store.uri}/dataset/round-0").files[0]
    for schema in (DATASET_SCHEMA, pq.read_schema(file)):
        for field in schema:
            assert field.metadata[b"description"]
            assert field.metadata[b"unit"]
    card = store.read("dataset/round-0/README.md").decode()
    assert all(f"| `{name}` |" in card for name in DATASET_SCHEMA.names)
    assert pq.read_table(file).to_pylist()[0]["tokens"] == {"prompt": 9, "cached": 0, "output": 4}


def test_writing_again_changes_nothing_and_a_larger_target_adds_files(store: Store, prompts: PromptSet) -> None:
    first = write_dataset(store, [part(make_task(), 20)], prompts, PROVENANCE)
    names = store.names("dataset/round-0")
    assert write_dataset(store, [part(make_task(), 20)], prompts, PROVENANCE) == first
    assert store.names("dataset/round-0") == names
    old_files = read_sealed(first.uri).files
    assert sealed_targets(store, "reverse") == [20]

    second = write_dataset(store, [part(make_task(), 50, sealed=(20,))], prompts, PROVENANCE)
    assert second.rows == 50
    assert second.digest != first.digest
    assert read_sealed(first.uri).files[: len(old_files)] == old_files
    assert read_rows(store) == [f"reverse{i}" for i in range(50)]
    assert sealed_targets(store, "reverse") == [20, 50]
    card = store.read("dataset/round-0/README.md").decode()
    assert all(Path(file).name in card for file in read_sealed(first.uri).files)


def test_growing_gives_the_digest_of_writing_at_once(tmp_path: Path, prompts: PromptSet) -> None:
    grown, whole = Store(str(tmp_path / "grown")), Store(str(tmp_path / "whole"))
    write_dataset(grown, [part(make_task(), 5), part(make_task("sort"), 5)], prompts, PROVENANCE)
    parts = [part(make_task(), 9), part(make_task("sort"), 12)]
    after = write_dataset(grown, parts, prompts, PROVENANCE)
    at_once = write_dataset(whole, [part(make_task(), 9), part(make_task("sort"), 12)], prompts, PROVENANCE)
    assert after.digest == at_once.digest


def test_what_an_interrupted_attempt_left_is_swept_and_mended(store: Store, prompts: PromptSet) -> None:
    def interrupted() -> Iterator[Row]:
        yield from make_rows(make_task(), 12)
        raise StorageError("the disk went away")

    whole = part(make_task(), 20)
    with pytest.raises(StorageError, match="went away"):
        write_dataset(store, [part(make_task("sort"), 4), TaskRows(whole.task, 20, interrupted(), {})], prompts, {})
    assert any(name.endswith(".parquet") for name in store.names("dataset/round-0"))
    with pytest.raises(NotSealedError):
        read_sealed(f"{store.uri}/dataset/round-0")
    sealed = write_dataset(store, [whole], prompts, PROVENANCE)
    store.replace("dataset/round-0/summary.json", b"{}")
    assert write_dataset(store, [part(make_task(), 20)], prompts, PROVENANCE) == sealed
    assert store.read_json("dataset/round-0/summary.json")["rows"] == 20
    parquet = [name for name in store.names("dataset/round-0") if name.endswith(".parquet")]
    assert parquet == [Path(file).name for file in read_sealed(sealed.uri).files]


def test_too_few_rows_a_smaller_target_and_other_rows_are_refused(store: Store, prompts: PromptSet) -> None:
    with pytest.raises(YieldError, match="has 7 of 20"):
        write_dataset(store, [part(make_task(), 20, count=7)], prompts, PROVENANCE)
    write_dataset(store, [part(make_task(), 20)], prompts, PROVENANCE)
    with pytest.raises(RecipeError, match="sealed with 20 rows of task 'reverse', 10"):
        write_dataset(store, [part(make_task(), 10)], prompts, PROVENANCE)
    other = make_rows(make_task(), 30)[1:]
    with pytest.raises(StorageError, match="not those that were sealed"):
        write_dataset(store, [TaskRows(make_task(), 25, other, {})], prompts, PROVENANCE)


def test_label_accuracy_is_measured_where_the_oracle_knows_the_answer(store: Store, prompts: PromptSet) -> None:
    def truth(task: str, text: str) -> str | None:
        if task == "sort":
            return None
        return "wrong" if text == "w3" else text[1:] + "w"

    oracle = Oracle(truth, lambda _, a, b: a == b)
    parts = [part(make_task(), 10), part(make_task("sort"), 5)]
    summary = write_dataset(store, parts, prompts, PROVENANCE, oracle)
    assert summary.label_accuracy == 0.9
    tasks = store.read_json("dataset/round-0/summary.json")["tasks"]
    assert tasks["reverse"]["label_accuracy"] == 0.9
    assert tasks["sort"]["label_accuracy"] is None


def test_reading_checks_that_the_sealed_files_are_there(store: Store, prompts: PromptSet) -> None:
    uri = f"{store.uri}/dataset/round-0"
    with pytest.raises(NotSealedError, match="psi generate"):
        read_sealed(uri)
    write_dataset(store, [part(make_task(), 5)], prompts, PROVENANCE)
    Path(read_sealed(uri).files[0]).unlink()
    with pytest.raises(StorageError, match="the seal says"):
        read_sealed(uri)


def test_human_rows_hold_the_seeds_for_mining_and_demonstration_never_for_validation(
    store: Store, prompts: PromptSet
) -> None:
    uri = human_rows(store, [make_task()], prompts)
    assert uri is not None
    assert human_rows(store, [make_task()], prompts) == uri
    table = pq.read_table(uri)
    assert table.schema.names == DATASET_SCHEMA.names
    assert table.column("row_id").to_pylist() == ["s0", "s2", "s3"]
    assert set(table.column("source").to_pylist()) == {"human"}
    assert json.dumps(table.column("messages").to_pylist()[0]).count("seed0") == 1
    assert human_rows(store.child("empty"), [Task(make_task().config, ())], prompts) is None


def test_the_seeds_for_validation_are_held_out_in_a_file_of_their_own(store: Store, prompts: PromptSet) -> None:
    uri = held_out_rows(store, [make_task()], prompts)
    assert uri is not None
    assert uri != human_rows(store, [make_task()], prompts)
    assert pq.read_table(uri).column("row_id").to_pylist() == ["s1"]
    assert held_out_rows(store.child("empty"), [Task(make_task().config, ())], prompts) is None


def test_each_file_is_told_of_as_soon_as_it_is_on_storage_and_before_the_dataset_is_sealed(
    store: Store, prompts: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "MAX_ROWS_PER_FILE", 8)
    folder, told = store.child("dataset/round-0"), []

    def on_file(file: dataset.DatasetFile) -> None:
        assert sha256(folder.read(file.name)).hexdigest() == file.sha256
        assert len([name for name in folder.names("") if name.endswith(".parquet")]) == len(told) + 1
        assert not folder.exists("SEALED.json")
        told.append(file)

    write_dataset(store, [part(make_task(), 20), part(make_task("sort"), 5)], prompts, PROVENANCE, on_file=on_file)
    sealed = read_sealed(folder.uri)
    assert [f"{folder.uri}/{file.name}" for file in told] == list(sealed.files)
    assert tuple(file.sha256 for file in told) == sealed.hashes
    assert [file.rows for file in told] == [8, 8, 4, 5]
