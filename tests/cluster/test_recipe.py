import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.identity import check_against_run
from cluster.recipe import LoadedRecipe, load_recipe, load_tasks, preview_of
from generation.engines.config import VllmEngine
from generation.errors import PrivacyError, RecipeError
from generation.storage import Store

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("PSI_SHARED_DIR", "../shared")).absolute()
MODELS = ROOT / "recipes/miniature/models"

RECIPE = """
[run]
name = "small"

[[tasks]]
name = "kilo"
description = "task kilo"
answer = { kind = "exact" }
seeds = "seeds.jsonl"

[pools.large.engine]
kind = "scripted"

[pools.small.engine]
kind = "vllm"
model = "model"
max_model_len = 512

[principles]
sampling = { max_output_tokens = 64 }

[generation]
accepted_rows = 100
draft = { max_output_tokens = 64 }
answer = { max_output_tokens = 64 }

[evaluation]
sampling = { max_output_tokens = 64, temperature = 0.0 }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "recipe"
    place.mkdir()
    (place / "recipe.toml").write_text(RECIPE)
    (place / "seeds.jsonl").write_text(
        "".join(json.dumps({"input": f"i{n}", "output": f"o{n}"}) + "\n" for n in range(20))
    )
    shutil.copytree(MODELS / "small", place / "model")
    return place


def mistakes(folder: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(folder, overrides)
    return str(caught.value).splitlines()[1:]


def data_overrides(recipe: Path) -> list[str]:
    if "gsm8k" not in str(recipe):
        return []
    if not SHARED.is_dir():
        pytest.skip("PSI_SHARED_DIR has no data")
    data = SHARED / "data/gsm8k"
    return [f"tasks.0.seeds={data}/train.jsonl", f"tasks.0.evaluation={data}/test.jsonl"]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*/recipe.toml")), ids=lambda path: path.parent.name)
def test_every_shipped_recipe_loads_with_its_seeds(path: Path) -> None:
    loaded = load_recipe(path, data_overrides(path))
    assert all(task.split("mine") for task in load_tasks(loaded))


def test_paths_are_absolute_and_relative_to_the_recipe_but_outputs_to_the_caller(folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe(folder / "recipe.toml").recipe
    assert recipe.tasks[0].seeds == str(folder / "seeds.jsonl")
    assert isinstance(recipe.pools.small.engine, VllmEngine)
    assert recipe.pools.small.engine.model == str(folder / "model")
    assert recipe.run.output == str(tmp_path / "runs/small")
    assert recipe.run.scratch == str(tmp_path / "runs/small/scratch")


def test_a_model_that_is_no_folder_is_a_hub_id_unless_it_is_written_like_a_path(folder: Path) -> None:
    engine = load_recipe(folder, ["pools.small.engine.model=Qwen/Qwen2.5-0.5B-Instruct"]).recipe.pools.small.engine
    assert isinstance(engine, VllmEngine)
    assert engine.model == "Qwen/Qwen2.5-0.5B-Instruct"
    assert "name a model folder or a hub id" in mistakes(folder, "pools.small.engine.model=./nowhere")[0]


def test_all_mistakes_of_the_form_are_reported_at_once(folder: Path) -> None:
    found = mistakes(
        folder, "generation.acepted_rows=3", "generation.accepted_rows=0", "tasks.kilo.max_seeds=none", "nonsense.key=1",
        "pools.small.engine.kind=vlm", "training.zero_stage=5", "tasks.7.seeds=x", "not an override",
    )  # fmt: skip
    expected = [
        "  tasks.7.seeds: there is no section '7'",
        "  not an override: is no override; write section.field=value",
        "  generation.acepted_rows: is unknown; did you mean 'accepted_rows'?",
        "  generation.accepted_rows: is 0; it must be greater than or equal to 1",
        "  tasks.0.max_seeds: is 'none'; it must be a valid integer",
        "  nonsense: is unknown; known here: cluster, compare, curation",
        "  pools.small.engine.kind: is 'vlm'; it must be one of 'vllm', 'http', 'scripted'",
        "  training.zero_stage: is 5; it must be 0, 1, 2 or 3",
    ]
    assert len(found) == len(expected)
    for line in expected:
        assert any(each.startswith(line) for each in found), (line, found)


def test_a_missing_field_is_named_with_its_purpose(folder: Path) -> None:
    (folder / "recipe.toml").write_text(RECIPE.replace("accepted_rows = 100", "").replace('model = "model"', ""))
    found = mistakes(folder)
    assert found[0].startswith("  pools.small.engine.model: is missing; set it: Local folder")
    assert found[1].startswith("  generation.accepted_rows: is missing; set it: Rows per task and arm")


def test_all_sections_that_do_not_fit_each_other_are_reported_at_once(folder: Path) -> None:
    text = RECIPE.replace('[pools.large.engine]\nkind = "scripted"\n', "") + '\n[[tasks]]\nname = "kilo"\n'
    text += 'description = "again"\nseeds = "nope.jsonl"\nanswer = { kind = "choice", labels = ["a", "A"], pattern = "(" }\n'
    (folder / "recipe.toml").write_text(text)
    found = "\n".join(
        mistakes(
            folder, "generation.answer.max_output_tokens=5000", "generation.voting.rounds=[4, 2]", "evaluation.oracle=a.py",
            "principles.levels={other = {prompt = 'nope', evidence = 'pair'}}", "principles.from=no.jsonl",
        )
    )  # fmt: skip
    for line in (
        f"tasks.1.seeds: nope.jsonl does not exist in {folder}",
        "principles.from: no.jsonl does not exist",
        "tasks.1.name: kilo is the name of an earlier task",
        "tasks.1.answer.labels: two labels are equal but for case",
        "tasks.1.answer.pattern: '(' is no regular expression",
        "generation.answer.max_output_tokens: 5000 leaves no room",
        "generation.voting.rounds: [4, 2] must grow",
        "evaluation.oracle: a.py is not file.py:function",
    ):
        assert line in found


def test_psi_needs_a_large_model_or_a_file_of_principles(folder: Path) -> None:
    (folder / "recipe.toml").write_text(RECIPE.replace('[pools.large.engine]\nkind = "scripted"\n', ""))
    assert mistakes(folder)[0].startswith("  pools.large: is missing, and an arm needs it")
    assert load_recipe(folder, ['generation.arms=["base", "direct"]']).recipe.pools.large is None
    (folder / "principles.jsonl").touch()
    assert load_recipe(folder, ["principles.from=principles.jsonl"]).recipe.principles.from_file is not None


def test_levels_must_name_templates_of_the_prompt_set(folder: Path) -> None:
    found = mistakes(folder, "principles.levels.task={prompt = 'mine_nothing', evidence = 'pair'}")
    assert found == [
        "  principles.levels.task.prompt: the prompt set has no mine_nothing.jinja; write it or leave the level out"
    ]


def test_a_recipe_has_at_least_one_task(folder: Path) -> None:
    assert "  tasks: there is none; add a [[tasks]] section" in mistakes(folder, "tasks=[]")


def test_private_tasks_refuse_endpoints_that_are_not_allowed(folder: Path) -> None:
    overrides = [
        "tasks.0.privacy=private",
        "pools.large.engine={kind = 'http', url = 'http://far.example/v1', model = 'm'}",
    ]
    with pytest.raises(PrivacyError, match=r"pools\.large\.engine\.url: task 'kilo' is private and far\.example"):
        load_recipe(folder, overrides)
    assert (
        load_recipe(folder, [*overrides, 'tasks.0.allowed_endpoints=["far.example"]']).recipe.tasks[0].privacy
        == "private"
    )


def test_figures_of_a_private_task_go_to_weights_and_biases_only_where_the_recipe_allows_its_host(folder: Path) -> None:
    overrides = ["tasks.0.privacy=private", "training.wandb_project=p", "training.wandb_url=https://boards.example"]
    with pytest.raises(PrivacyError, match=r"training\.wandb_url: task 'kilo' is private and boards\.example"):
        load_recipe(folder, overrides)
    load_recipe(folder, [*overrides, 'tasks.0.allowed_endpoints=["boards.example"]'])
    load_recipe(folder, overrides[:1])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run.name=2024", "2024"),
        ("run.seed=7", 7),
        ("training.learning_rate=1e-4", 1e-4),
        ("training.gradient_checkpointing=true", True),
        ('generation.arms=["base", "psi"]', ("base", "psi")),
        ("generation.difficulties=['easy', 'hard']", ("easy", "hard")),
        ("cluster.address=ray://host:10001", "ray://host:10001"),
        ("training.deepspeed.comms_logger={enabled = true}", {"enabled": True}),
    ],
)
def test_an_override_has_the_type_of_its_field(folder: Path, override: str, value: Any) -> None:
    place: Any = load_recipe(folder, [override]).recipe
    for key in override.split("=")[0].split("."):
        place = place[key] if isinstance(place, dict) else getattr(place, key)
    assert place == value


def test_a_path_typed_as_an_override_may_be_relative_to_the_caller(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "seeds.jsonl", tmp_path / "here.jsonl")
    assert load_recipe(folder, ["tasks.kilo.seeds=here.jsonl"]).recipe.tasks[0].seeds == str(tmp_path / "here.jsonl")


def test_files_that_are_no_recipe_say_so(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = 1\na = 2\n")
    with pytest.raises(RecipeError, match="is not TOML"):
        load_recipe(tmp_path / "bad.toml")


def changed(folder: Path, store: Store, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        check_against_run(store, load_recipe(folder, overrides))
    return str(caught.value)


def test_identity_is_refused_to_change_and_operations_are_free(folder: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    check_against_run(store, load_recipe(folder))
    operations = [
        "pools.small.replicas=4",
        "run.output=/elsewhere",
        "limits.gpu_hours=3",
        "generation.accepted_rows=200",
    ]
    check_against_run(store, load_recipe(folder, operations))
    assert store.read_json("recipe.json")["recipe"]["generation"]["accepted_rows"] == 200
    message = changed(folder, store, "run.seed=1", "tasks.0.description=new words", "generation.accepted_rows=200")
    assert "  run.seed: was 0, is 1" in message
    assert '  tasks.kilo.description: was "task kilo", is "new words"' in message
    assert "undo the change or set a new run.output" in message
    assert "generation.accepted_rows: 150 is below the 200 rows" in changed(
        folder, store, "generation.accepted_rows=150"
    )


def test_a_verifier_is_found_beside_the_recipe_and_its_content_is_identity(folder: Path) -> None:
    spec = "tasks.0.verifier=check.py:right"
    assert "check.py:right is not file.py:function with a file in" in mistakes(folder, spec)[0]
    (folder / "check.py").write_text("def right(text, answer):\n    return True\n")
    assert "is not file.py:function" in mistakes(folder, "tasks.0.verifier=check.py")[0]
    before = load_recipe(folder, [spec])
    assert before.recipe.tasks[0].verifier == f"{folder / 'check.py'}:right"
    hash_before = before.identity_hash
    (folder / "check.py").write_text("def right(text, answer):\n    return False\n")
    hash_after = load_recipe(folder, [spec]).identity_hash
    assert hash_after != hash_before
    (folder / "imported_by_check.py").write_text("RIGHT = True\n")
    assert load_recipe(folder, [spec]).identity_hash not in (hash_before, hash_after)


def test_a_round_trip_needs_its_template(folder: Path) -> None:
    (folder / "prompts").mkdir()
    for file in (ROOT / "generation/prompts/chat").iterdir():
        if file.stem != "round_trip_text":
            shutil.copy(file, folder / "prompts")
    assert mistakes(folder, "prompts=prompts", "generation.round_trip=true") == [
        "  generation.round_trip: the prompt set has no round_trip_text.jinja; write it or leave the check out"
    ]
    assert load_recipe(folder, ["generation.round_trip=true"]).recipe.generation.round_trip


def test_identity_follows_contents_and_not_places(folder: Path, tmp_path: Path) -> None:
    before = load_recipe(folder)
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert load_recipe(moved).identity_hash == before.identity_hash
    with (moved / "seeds.jsonl").open("a") as stream:
        stream.write('{"input": "one more", "output": "x"}\n')
    assert differing(before, load_recipe(moved)) == {"tasks.kilo.seeds"}
    shutil.rmtree(moved / "model")
    shutil.copytree(MODELS / "large", moved / "model")
    assert differing(before, load_recipe(moved)) == {"tasks.kilo.seeds", "pools.small.engine.model"}


def differing(one: LoadedRecipe, other: LoadedRecipe) -> set[str]:
    return {key for key in {*one.identity, *other.identity} if one.identity.get(key) != other.identity.get(key)}


def test_a_preview_is_a_run_of_its_own_without_other_arms(folder: Path) -> None:
    loaded = load_recipe(folder, ['generation.arms=["base", "direct", "psi"]'])
    preview = preview_of(loaded, 50).recipe
    assert preview.generation.accepted_rows == 50
    assert preview.generation.arms == ("psi",)
    assert preview.generation.flows_per_unit < loaded.recipe.generation.flows_per_unit
    assert preview.run.output == f"{loaded.recipe.run.output}-preview"
    assert preview.run.scratch == f"{loaded.recipe.run.output}-preview/scratch"
