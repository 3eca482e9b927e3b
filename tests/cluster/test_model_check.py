"""A trained model is published once it has answered in vLLM, and not before."""

import io
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from cluster.model_check import publish_checked
from cluster.open_run import OpenRun
from cluster.private_sends import SendBook
from cluster.progress import ProgressLine
from cluster.recipe import load_recipe, load_tasks
from cluster.stage_pools import StagePools
from generation.errors import TrainingError
from generation.prompts.prompt_set import load_prompt_set
from generation.storage import Store
from tests.local_ray import local_ray
from tests.training.build_job import ROOT
from training.job import LINEAGE, UNCHECKED

pytestmark = pytest.mark.slow

SMALL = ROOT / "recipes/miniature/models/small"


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with local_ray(cpus=2):
        yield


@pytest.fixture
def run(tmp_path):
    loaded = load_recipe(ROOT / "recipes/miniature/recipe.toml", [f"run.output={tmp_path}/run"])
    prompts = load_prompt_set(loaded.recipe.prompts, loaded.folder)
    return OpenRun.begin(loaded, load_tasks(loaded), prompts, ProgressLine(io.StringIO(), lambda: 0.0))


def exported(folder: Path) -> Path:
    (folder / UNCHECKED).write_text("{}")
    return folder


def publish(run: OpenRun, folder: Path) -> None:
    with StagePools(run.recipe, run.energy, run.engines, SendBook(run.store, run.recipe)) as pools:
        publish_checked(run, "psi", Store(str(folder)), lambda model: pools.trained(model, to_check=True))


def test_a_model_that_answers_in_vllm_is_published_and_asked_no_second_time(run, tmp_path):
    folder = exported(Path(shutil.copytree(SMALL, tmp_path / "model")))
    publish(run, folder)
    assert (folder / LINEAGE).exists()
    assert not (folder / UNCHECKED).exists()
    (folder / "config.json").unlink()
    publish(run, folder)


def test_a_model_whose_answers_never_end_is_not_published(run, tmp_path):
    folder = exported(Path(shutil.copytree(SMALL, tmp_path / "model")))
    set_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(SMALL)).save_pretrained(folder)
    with pytest.raises(
        TrainingError, match=r"not published.*max_output_tokens = 40 \(kilo: an answer that does not end"
    ):
        publish(run, folder)
    assert not (folder / LINEAGE).exists()


def test_a_model_that_vllm_cannot_load_is_not_published(run, tmp_path):
    folder = exported(Path(shutil.copytree(SMALL, tmp_path / "model")))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(TrainingError, match="not published, for vLLM cannot serve it"):
        publish(run, folder)
    assert not (folder / LINEAGE).exists()
