import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cluster.init import InitRequest, init_recipe
from cluster.recipe import load_recipe, load_tasks
from generation.errors import RecipeError, SeedError
from generation.seeds import load_evaluation

SHARED = Path(os.environ.get("PSI_SHARED_DIR", "../shared")).absolute()
MODEL = Path(__file__).parents[2] / "recipes/miniature/models/small"


def csv_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.csv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def made(folder: Path, rows: list[dict[str, Any]], **wanted: Any) -> Any:
    init_recipe(InitRequest("mine", csv_file(folder, rows), directory=folder, **wanted))
    loaded = load_recipe(folder / "mine")
    assert load_tasks(loaded)[0].split("validate")
    return loaded.recipe.tasks[0]


@pytest.mark.parametrize(
    ("columns", "outputs", "kind"),
    [
        (("text", "label"), ["good", "bad", "Good"], "choice"),
        (("question", "answer"), ["1", "$2.50", "1,000"], "number"),
        (("a", "b"), [f"word {i}" for i in range(20)], "exact"),
        (("prompt", "response"), [f"a long text {i} " * 20 for i in range(20)], "open"),
        (("id", "target", "Query"), ["alpha", "beta"], "choice"),
    ],
)
def test_columns_and_answer_kind_are_guessed(
    tmp_path: Path, columns: tuple[str, ...], outputs: list[str], kind: str
) -> None:
    answers = {"label", "answer", "b", "response", "target"}
    rows = [{c: outputs[i % len(outputs)] if c in answers else f"{c} {i}" for c in columns} for i in range(20)]
    task = made(tmp_path, rows)
    assert task.answer.kind == kind
    assert task.fields.output in answers
    assert task.fields.input in {"text", "question", "a", "prompt", "Query"}
    if kind == "choice":
        assert {label.casefold() for label in task.answer.labels} == {output.casefold() for output in outputs}


def test_a_few_rows_are_all_seeds_and_many_leave_some_for_evaluation(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": i, "extra": "not copied"} for i in range(100)]
    message = init_recipe(InitRequest("few", csv_file(tmp_path, rows[:20]), directory=tmp_path))
    assert "accuracy is 'not measured'" in message
    assert load_recipe(tmp_path / "few").recipe.tasks[0].evaluation is None
    task = made(tmp_path, rows)
    assert len(load_evaluation(task)) == 25
    seeds = [json.loads(line) for line in Path(task.seeds).read_text().splitlines()]
    assert len(seeds) == 75
    assert set(seeds[0]) == {"question", "answer"}


def test_an_evaluation_file_of_the_user_is_taken_whole(tmp_path: Path) -> None:
    held_out = tmp_path / "held.jsonl"
    held_out.write_text('{"question": "new", "answer": "3"}\n')
    task = made(tmp_path, [{"question": f"q{i}", "answer": i} for i in range(60)], evaluation=held_out)
    assert len(load_evaluation(task)) == 1
    assert len(Path(task.seeds).read_text().splitlines()) == 60


def test_a_small_model_here_sets_lengths_that_fit_its_context(tmp_path: Path) -> None:
    made(tmp_path, [{"x": f"x{i}", "y": i} for i in range(20)], small=str(MODEL), large=str(MODEL))
    recipe = load_recipe(tmp_path / "mine").recipe
    assert (
        recipe.pools.small.engine.max_model_len
        == json.loads((MODEL / "config.json").read_text())["max_position_embeddings"]
    )
    assert recipe.pools.small.engine.model == str(MODEL)


@pytest.mark.parametrize(
    ("rows", "wanted", "text"),
    [
        ([{"a": "1", "b": "2", "c": "3"}], {}, "--input-field: no column looks right; the columns are a, b, c"),
        ([{"text": "1", "label": "2"}], {"output_field": "tag"}, "--output-field: tag is not there"),
        ([{"text": "1", "label": "2"}], {"name": "My Task"}, "My Task: is no name for a task"),
        (
            [{"text": "1", "label": "2"}],
            {"answer_kind": "guess"},
            "--answer-kind: guess is none of choice, number, exact, open",
        ),
    ],
)
def test_what_cannot_be_guessed_is_asked_for(tmp_path: Path, rows: Any, wanted: dict[str, Any], text: str) -> None:
    request = {"name": "mine", "seeds": csv_file(tmp_path, rows), "directory": tmp_path, **wanted}
    with pytest.raises(RecipeError, match=text):
        init_recipe(InitRequest(**request))
    assert not (tmp_path / "mine").exists()


def test_bad_rows_and_existing_folders_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    rows = [{"text": "same", "label": "x"}, {"text": "same", "label": "x"}, {"text": "", "label": "y"}]
    with pytest.raises(SeedError, match=r"(?s)rows\.csv:3: has the input.*rows\.csv:4: 'text' is empty"):
        init_recipe(InitRequest("mine", csv_file(tmp_path, rows), directory=tmp_path))
    (tmp_path / "mine").mkdir()
    with pytest.raises(RecipeError, match="exists already"):
        init_recipe(InitRequest("mine", tmp_path / "rows.csv", directory=tmp_path))


@pytest.mark.skipif(not SHARED.is_dir(), reason="PSI_SHARED_DIR has no data")
def test_gsm8k_is_understood_as_it_is(tmp_path: Path) -> None:
    init_recipe(InitRequest("gsm8k", SHARED / "data/gsm8k/test.jsonl", directory=tmp_path))
    task = load_tasks(load_recipe(tmp_path / "gsm8k"))[0]
    assert task.config.answer.kind == "number"
    assert task.seeds[0].rationale
    assert task.seeds[0].output.lstrip("-").replace(".", "").isdigit()


def test_a_model_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    rows = csv_file(tmp_path, [{"question": f"q{i}", "answer": i} for i in range(20)])
    with pytest.raises(RecipeError, match=r"--small: .*empty holds no config\.json"):
        init_recipe(InitRequest("mine", rows, directory=tmp_path, small=str(tmp_path / "empty")))
    assert not (tmp_path / "mine").exists()
