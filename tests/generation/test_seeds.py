import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from generation.config import AnswerConfig, FieldsConfig, TaskConfig
from generation.errors import SeedError
from generation.seed_files import MAX_ROW_BYTES
from generation.seeds import MAX_LISTED, load_evaluation, load_tasks, split_seeds
from generation.task import Seed

SHARED = Path(os.environ.get("PSI_SHARED_DIR", "../shared"))
ROWS = [{"input": f"question {i}", "output": f"answer {i}"} for i in range(20)]
needs_data = pytest.mark.skipif(not (SHARED / "data/gsm8k").is_dir(), reason="PSI_SHARED_DIR has no data")


def seeds_of(config: TaskConfig) -> list[Seed]:
    (loaded,) = load_tasks([config])
    return list(loaded.seeds)


def task(path: Path, **values: Any) -> TaskConfig:
    return TaskConfig.model_validate(
        {"name": "t", "description": "d", "answer": {"kind": "exact"}, "seeds": str(path), **values}
    )


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def problems(config: TaskConfig) -> str:
    with pytest.raises(SeedError) as caught:
        load_tasks([config])
    return str(caught.value)


def as_jsonl(folder: Path) -> Path:
    return write_lines(folder / "a.jsonl", ROWS)


def as_csv(folder: Path) -> Path:
    with (folder / "a.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, ["input", "output"])
        writer.writeheader()
        writer.writerows(ROWS)
    return folder / "a.csv"


def as_parquet(folder: Path) -> Path:
    parquet.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet")
    return folder / "a.parquet"


def as_parquet_folder(folder: Path) -> Path:
    (folder / "data").mkdir()
    parquet.write_table(pa.Table.from_pylist(ROWS[:12]), folder / "data/train-00000-of-00002.parquet")
    parquet.write_table(pa.Table.from_pylist(ROWS[12:]), folder / "data/train-00001-of-00002.parquet")
    return folder / "data"


def as_saved_dataset(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "saved", num_shards=2)
    return folder / "saved"


@pytest.mark.parametrize("write", [as_jsonl, as_csv, as_parquet, as_parquet_folder, as_saved_dataset])
def test_every_form_of_file_gives_the_same_seeds(tmp_path: Path, write: Any) -> None:
    seeds = seeds_of(task(write(tmp_path)))
    assert [(seed.input, seed.output) for seed in seeds] == [(row["input"], row["output"]) for row in ROWS]
    assert len({seed.seed_id for seed in seeds}) == len(ROWS)


def test_all_bad_rows_are_reported_at_once_by_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    lines = [
        b'{"input": "fine", "output": "valid"}',
        b'{"input": "no output"}',
        b'{"input": " ", "output": "valid"}',
        b'{"input": "fine", "output": "valid"}',
        b'{"input": "other label", "output": "maybe valid"}',
        b'{"input": "caf\xe9", "output": "valid"}',
        b'{"input": "' + b"x" * (10 * MAX_ROW_BYTES) + b'", "output": "valid"}',
        b'{"input": "broken", ',
        b'["a list"]',
        b'{"input": ["nested"], "output": "valid"}',
        b'{"input": "\\ud800", "output": "valid"}',
        b"",
        b'{"input": "last", "output": "INVALID"}',
    ]
    path.write_bytes(b"\n".join(lines))
    message = problems(task(path, answer={"kind": "choice", "labels": ["valid", "invalid"]}))
    assert message.startswith("10 rows cannot be used")
    for line, text in {
        2: "no field 'output'",
        3: "'input' is empty",
        4: f"has the input of {path}:1",
        5: "'maybe valid' is not one of the labels valid, invalid",
        6: "is not UTF-8: byte 15 is 0xe9",
        7: "the line has 10.0 MB",
        8: "is not JSON",
        9: "is a JSON list",
        10: "is a list, not a text",
        11: "half of a surrogate pair",
    }.items():
        assert any(f":{line}: " in row and text in row for row in message.splitlines()), (line, message)


def test_problems_of_all_tasks_and_files_come_in_one_message(tmp_path: Path) -> None:
    first, second = write_lines(tmp_path / "a.jsonl", [{"input": "x"}]), tmp_path / "empty.jsonl"
    second.touch()
    with pytest.raises(SeedError) as caught:
        load_tasks([task(first, name="one"), task(first, name="two", evaluation=str(second))])
    assert str(caught.value).count("a.jsonl:1") == 2
    assert "empty.jsonl: is empty" in str(caught.value)


def test_a_long_list_of_problems_is_cut_and_counted(tmp_path: Path) -> None:
    message = problems(task(write_lines(tmp_path / "a.jsonl", [{"input": str(i)} for i in range(80)])))
    assert message.startswith("80 rows")
    assert message.count("a.jsonl:") == MAX_LISTED
    assert message.endswith("and 30 more")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", b"x", "unknown kind '.txt'"),
        ("a.parquet", b"no parquet", "cannot be read"),
        ("a.csv", b"input,output\n", "is empty"),
        ("a.csv", b"question,reply\na,b\n", "a.csv:2: has no field 'input'; it has 'question', 'reply'"),
        ("a.csv", b'input,output\n"two\nlines",x\nonly one\n', "a.csv:4: has 1 fields, the header has 2"),
        ("a.csv", b'input,output\na,b\n"never closed,x\n', "a.csv:3: is not CSV"),
        ("a.csv", b"input,output\ncaf\xe9,b\nc,d\n", "a.csv:2: is not UTF-8"),
    ],
)
def test_unreadable_files_say_why_and_where(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert text in problems(task(tmp_path / name))


def test_a_folder_that_mixes_splits_is_refused(tmp_path: Path) -> None:
    for name in ("train-0.parquet", "test-0.parquet"):
        parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / name)
    assert "mixes files of test, train" in problems(task(tmp_path))


def test_messages_about_private_tasks_hold_no_content(tmp_path: Path) -> None:
    rows = [{"input": "secret question", "output": "secret label"}, {"input": "secret question", "output": "yes"}]
    answer = {"kind": "choice", "labels": ["yes", "no"]}
    path = write_lines(tmp_path / "a.jsonl", rows)
    assert "secret" not in problems(task(path, answer=answer, privacy="private"))
    assert "secret label" in problems(task(path, answer=answer))


def test_seeds_that_are_evaluation_inputs_are_refused_by_line(tmp_path: Path) -> None:
    seeds = write_lines(tmp_path / "seeds.jsonl", ROWS)
    held_out = write_lines(
        tmp_path / "eval.jsonl", [{"input": "new", "output": "x"}, {"input": "QUESTION  3", "output": "x"}]
    )
    assert f"{seeds}:4: has the input of {held_out}:2" in problems(task(seeds, evaluation=str(held_out)))


def test_a_cut_of_the_file_is_the_only_part_that_is_checked(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [*ROWS, {"input": "bad"}])
    assert len(seeds_of(task(path, max_seeds=5))) == 5


def test_numbers_keep_their_spelling_and_text_before_the_answer_is_the_rationale(tmp_path: Path) -> None:
    rows = [{"q": "a", "a": "One and two.\n#### 1,003.50"}, {"q": "b", "a": 7}]
    fields = {"input": "q", "output": "a", "answer_pattern": r"####\s*(.+)"}
    first = seeds_of(task(write_lines(tmp_path / "a.jsonl", rows[:1]), answer={"kind": "number"}, fields=fields))[0]
    assert (first.output, first.rationale) == ("1003.5", "One and two.")
    assert "finds nothing in 'a'" in problems(
        task(write_lines(tmp_path / "b.jsonl", rows), answer={"kind": "number"}, fields=fields)
    )


LABELS = ("yes", "no", "maybe")


def made(count: int, labels: int = 1) -> list[Seed]:
    return [Seed(f"{hash((i, labels)) & 0xFFFFFFFF:08x}{i:04d}", str(i), LABELS[i % labels]) for i in range(count)]


CHOICE = TaskConfig(name="t", description="d", answer=AnswerConfig(kind="choice", labels=LABELS), seeds="s")


@given(st.integers(1, 200), st.integers(1, 3))
def test_splits_have_their_shares_and_keep_the_order(count: int, labels: int) -> None:
    seeds = split_seeds(CHOICE, made(count, labels))
    assert [seed.seed_id for seed in seeds] == [seed.seed_id for seed in made(count, labels)]
    sizes = [sum(seed.split == name for seed in seeds) for name in ("mine", "validate", "demo")]
    assert sum(sizes) == count
    if count >= 3:
        assert min(sizes) >= 1
        assert abs(sizes[0] - count / 2) <= 1
        assert sizes[1] == sizes[2]


@given(st.integers(24, 200), st.integers(1, 3))
def test_labels_spread_evenly_over_the_splits(count: int, labels: int) -> None:
    seeds = split_seeds(CHOICE, made(count, labels))
    for label in LABELS[:labels]:
        group = [seed for seed in seeds if seed.output == label]
        for name, share in (("mine", 0.5), ("validate", 0.25), ("demo", 0.25)):
            assert abs(sum(seed.split == name for seed in group) - share * len(group)) <= 2


@given(st.integers(12, 200))
def test_a_row_that_is_added_moves_only_its_neighbours_at_the_cuts(count: int) -> None:
    before = {seed.seed_id: seed.split for seed in split_seeds(CHOICE, made(count))}
    after = {seed.seed_id: seed.split for seed in split_seeds(CHOICE, made(count + 1))}
    assert sum(after[seed_id] != split for seed_id, split in before.items()) <= 3


@needs_data
def test_gsm8k_is_read_as_it_is() -> None:
    config = TaskConfig(
        name="gsm8k",
        description="d",
        answer=AnswerConfig(kind="number"),
        seeds=str(SHARED / "data/gsm8k/train.jsonl"),
        max_seeds=500,
        evaluation=str(SHARED / "data/gsm8k/test.jsonl"),
        fields=FieldsConfig(input="question", output="answer", answer_pattern=r"####\s*(.+)"),
    )
    seeds = load_tasks([config])[0].seeds
    assert seeds[0].output == "72"
    assert seeds[0].rationale.startswith("Natalia sold 48/2")
    assert all("####" not in seed.rationale for seed in seeds)
    assert len(load_evaluation(config)) == 1319


@needs_data
@pytest.mark.parametrize("name", ["formal_fallacies", "boolean_expressions", "snarks", "date_understanding"])
def test_bbh_choices_are_read_and_stratified(tmp_path: Path, name: str) -> None:
    examples = json.loads((SHARED / f"data/bbh/{name}.json").read_text())["examples"]
    labels = sorted({example["target"] for example in examples})
    path = write_lines(tmp_path / "a.jsonl", examples)
    seeds = seeds_of(task(path, answer={"kind": "choice", "labels": labels}, fields={"output": "target"}))
    assert [seed.output for seed in seeds] == [example["target"] for example in examples]
    assert all({s.split for s in seeds if s.output == label} == {"mine", "validate", "demo"} for label in labels)
