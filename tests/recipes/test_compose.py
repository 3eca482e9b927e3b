import runpy
import sys
from pathlib import Path

import pytest

from cluster import init
from cluster.cli import main
from cluster.oracle import load_oracle
from cluster.recipe import load_recipe, load_tasks
from generation.errors import RecipeError
from generation.seeds import load_evaluation
from recipes.miniature.compose import compose, read_rule, seen_as
from recipes.miniature.make_tasks import EVALUATION, FOLDER, SEEDS
from recipes.miniature.world import FUNCTIONS, TASKS, apply, trace

RULE = ("sort", "shift up", "reverse")


def ended(arguments: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


def test_a_composed_folder_is_the_miniature_with_one_task_whose_truth_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(["init", "mine", "--compose", "Sort;  shift up ;reverse", "--directory", str(tmp_path)]) == 0
    assert "saw this as 'sort down; shift up', which computes the same" in capsys.readouterr().out
    loaded, miniature = load_recipe(tmp_path / "mine"), load_recipe(FOLDER).recipe
    (task,) = load_tasks(loaded)
    items = load_evaluation(task.config)
    assert (task.name, len(task.seeds), len(items)) == ("mine", SEEDS, EVALUATION)
    assert all(seed.rationale == ">".join(trace(RULE, seed.input)) for seed in (*task.seeds, *items))
    oracle = load_oracle(loaded.recipe.evaluation.oracle, loaded.folder)
    assert oracle is not None
    assert all(oracle.truth("mine", item.input) == item.output == apply(RULE, item.input) for item in items)
    assert loaded.recipe.run.output.endswith("runs/mine")
    assert loaded.recipe.prompts == miniature.prompts
    for part in ("pools", "principles", "generation", "curation", "training"):
        assert getattr(loaded.recipe, part) == getattr(miniature, part)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sort; turn round; up", r"there is no function 'turn round', 'up'; .*reverse, sort, sort down, swap ends"),
        ("", "there is no function ''"),
        ("sort;", "there is no function ''"),
        ("sort; reverse; sort; reverse", "4 functions; the models know compositions of up to 3"),
        ("rotate left; rotate right", "leaves every word as it is"),
        ("reverse; shift up; reverse; shift down", "4 functions"),
    ],
)
def test_what_is_no_rule_is_refused_with_the_reason_and_leaves_nothing(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        compose("mine", text, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_and_a_name_that_is_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(RecipeError, match="mine: exists already"):
        compose("mine", "sort", tmp_path)
    with pytest.raises(RecipeError, match="Mine: is no name for a task"):
        compose("Mine", "sort", tmp_path)


def test_whether_pretraining_saw_a_rule_is_a_matter_of_what_it_computes() -> None:
    assert seen_as(("sort",)) == ("sort",)
    assert seen_as(("sort", "reverse")) == ("sort down",)
    assert seen_as(TASKS["romeo"]) is None


def test_every_function_alone_is_a_rule_and_short_answers_are_never_empty(tmp_path: Path) -> None:
    assert all(read_rule(name) == (name,) for name in FUNCTIONS)
    told = compose("short", "no repeats; drop first; drop last", tmp_path)
    assert "pretraining" in told
    (task,) = load_tasks(load_recipe(tmp_path / "short"))
    assert all(seed.output for seed in task.seeds)


def test_init_takes_examples_or_a_rule_and_not_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["init", "mine", "--directory", str(tmp_path)]
    assert ended(place) == 2
    assert "--seeds, or a rule with --compose" in capsys.readouterr().err
    for option in (["--seeds", "x.csv"], ["--small", "x"]):
        assert ended([*place, "--compose", "sort", *option]) == 2
        assert "give no other option" in capsys.readouterr().err
    assert ended([*place, "--compose", "sort it"]) == 2
    assert "error: --compose: there is no function 'sort it'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_its_recipes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "COMPOSER", Path("recipes/nowhere/compose.py"))
    with pytest.raises(RecipeError, match=r"nowhere/compose\.py is not there; it needs a checkout of PSI"):
        init.composed_recipe("mine", "sort", tmp_path)


def test_the_module_is_a_command_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["compose", "mine", "sort; drop first", "--directory", str(tmp_path)])
    runpy.run_path(str(FOLDER / "compose.py"), run_name="__main__")
    assert load_recipe(tmp_path / "mine").recipe.tasks[0].name == "mine"
