"""A recipe decides numbers and paths, never which code runs."""

import os
import re
from pathlib import Path

import pytest

from cluster.recipe import LoadedRecipe, load_recipe
from cluster.train_job import make_trainer, train_on_rank
from generation.engines.build import build_engine
from generation.engines.config import VllmEngine
from training.job import TrainingJob

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("PSI_SHARED_DIR", "../shared")).absolute()
NAMES = sorted(path.parent.name for path in (ROOT / "recipes").glob("*/recipe.toml"))
PACKAGES = ("cluster", "generation", "training")


def load(name: str) -> LoadedRecipe:
    overrides = []
    if name == "gsm8k":
        data = SHARED / "data/gsm8k"
        if not data.is_dir():
            pytest.skip("PSI_SHARED_DIR has no data")
        overrides = [f"tasks.0.seeds={data}/train.jsonl", f"tasks.0.evaluation={data}/test.jsonl"]
    return load_recipe(ROOT / "recipes" / name / "recipe.toml", overrides)


def training_job(loaded: LoadedRecipe) -> TrainingJob:
    places = dict.fromkeys(("dataset", "output", "tokens", "checkpoints", "metrics"), "nowhere")
    model = loaded.recipe.pools.small.engine.model
    return TrainingJob(
        model=model, human=None, held_out=None, **places, config=loaded.recipe.training, seed=0, name="job"
    )


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("recipe.toml")), ids=lambda path: path.parent.name)
def test_every_recipe_loads_with_its_data(path: Path) -> None:
    assert load(path.parent.name).recipe.run.name == path.parent.name


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_served_by_the_same_engine_class(name: str) -> None:
    recipe = load(name).recipe
    for pool in (recipe.pools.large, recipe.pools.small):
        assert pool is not None
        assert type(pool.engine) is VllmEngine
        assert type(build_engine(pool.engine)).__name__ == "VllmModel"


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_trained_by_the_same_loop_under_the_same_trainer(name: str, tmp_path: Path) -> None:
    from ray.train.torch import TorchTrainer

    trainer = make_trainer(training_job(load(name)), tmp_path, tmp_path / "probe")
    assert type(trainer) is TorchTrainer
    assert trainer.train_loop_per_worker is train_on_rank


@pytest.mark.parametrize("name", NAMES)
def test_no_code_knows_a_recipe_by_its_name(name: str) -> None:
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    quoted = re.compile(rf"""["']{re.escape(name)}["']""", re.IGNORECASE)
    assert [str(path) for path in sources if quoted.search(path.read_text())] == []
