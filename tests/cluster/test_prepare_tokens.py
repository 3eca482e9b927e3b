"""Tokenising on a real Ray cluster: before the dataset is sealed, before there are ranks, and once."""

import io
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from cluster import prepare_tokens as prepare_tokens_module
from cluster.generate import generate_stage
from cluster.open_run import OpenRun
from cluster.prepare_tokens import TokenTasks, prepare_tokens, token_energy
from cluster.private_sends import SendBook
from cluster.progress import ProgressLine
from cluster.recipe import load_recipe, load_tasks
from cluster.stage_pools import StagePools
from cluster.stages import token_folder, trainable_model
from cluster.train_job import run_training
from generation.arms import arm_spec
from generation.dataset import DATASET_FOLDER, read_sealed
from generation.errors import NotSealedError, TrainingError
from generation.prompts.prompt_set import load_prompt_set
from tests.local_ray import local_ray
from tests.training.build_job import ROOT, conversations, make_job, write_dataset, write_model, write_rows
from training.chat import load_encoder
from training.prepare import is_prepared, prepare
from training.sources import Source, find_sources


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with local_ray(cpus=2):
        yield


def made(job):
    return {path.name: path.stat().st_mtime_ns for path in Path(job.tokens).glob("*.arrow")}


def test_a_file_is_tokenised_before_its_dataset_is_sealed_and_found_once_it_is(tmp_path, model):
    job = make_job(tmp_path / "job", model, write_dataset(tmp_path / "dataset"), None)
    sources = find_sources(job)
    seal = tmp_path / "dataset" / "SEALED.json"
    shutil.move(seal, tmp_path / "seal")
    with pytest.raises(NotSealedError):
        prepare_tokens(job)
    tasks = TokenTasks()
    for source in sources:
        tasks.begin(source, job.tokens, job.model, job.config)
    tasks.wait()
    encoder = load_encoder(job.model)
    assert all(is_prepared(source, Path(job.tokens), encoder, job.config) for source in sources)
    before = made(job)
    shutil.move(tmp_path / "seal", seal)
    prepare_tokens(job)
    assert [file.rows for file in prepare(job, encoder)] == [40, 25]
    assert made(job) == before


def test_a_task_that_failed_while_the_driver_went_on_is_told_of_before_the_ranks_start(tmp_path, model):
    job = make_job(tmp_path / "job", model, write_dataset(tmp_path / "dataset"), None, max_tokens=30, overlong="error")
    tasks = TokenTasks()
    tasks.begin(find_sources(job)[0], job.tokens, job.model, job.config)
    tasks.wait()
    with pytest.raises(TrainingError, match=r"a row of \d+ tokens, training.max_tokens = 30"):
        run_training(job)
    assert not Path(job.checkpoints).exists()


def test_ranks_under_ray_train_find_all_token_files_made_by_tasks(tmp_path, model):
    human = write_rows(tmp_path / "human" / "seeds.parquet", conversations(6, 99))
    unseen = write_rows(tmp_path / "human" / "held-out.parquet", conversations(5, 98))
    job = make_job(tmp_path / "job", model, write_dataset(tmp_path / "dataset"), human, unseen, max_steps=2)
    run_training(job)
    tokenised = {path.name.split("-")[-2] for path in token_energy(job.tokens).iterdir()}
    starts = (Path(job.checkpoints) / "starts.jsonl").read_text().splitlines()
    ranks = {process.partition(":")[2] for process in json.loads(starts[0])["processes"]}
    assert tokenised
    assert not tokenised & ranks
    assert len(made(job)) == 4
    mix = json.loads((Path(job.output) / "psi.json").read_text())["mix"]
    assert {name: counts["rows"] for name, counts in mix.items()} == {"synthetic": 65, "human": 12}
    assert sum(counts["share"] for counts in mix.values()) == pytest.approx(1)


def test_a_second_training_seed_prepares_nothing_again(tmp_path, model):
    job = make_job(tmp_path / "job", model, write_dataset(tmp_path / "dataset"), None)
    prepare_tokens(job)
    before = made(job)
    prepare_tokens(replace(job, seed=1, checkpoints=str(tmp_path / "other")))
    assert made(job) == before


def test_files_that_came_to_lie_on_another_node_are_made_again_on_the_drivers(tmp_path, model, monkeypatch):
    job = make_job(tmp_path / "job", model, write_dataset(tmp_path / "dataset"), None)
    submit, nodes = prepare_tokens_module._submit, []

    def elsewhere_first(source, folder, *others):
        nodes.append(getattr(others[-1], "node_id", "any"))
        return submit(source, folder if len(nodes) > 2 else str(tmp_path / "another node"), *others)

    monkeypatch.setattr(prepare_tokens_module, "_submit", elsewhere_first)
    prepare_tokens(job)
    assert nodes == ["any", "any", *[ray.get_runtime_context().get_node_id()] * 2]
    assert [file.rows for file in prepare(job, load_encoder(job.model))] == [40, 25]


@pytest.mark.parametrize("trains", [True, False])
def test_generation_has_each_file_of_its_dataset_tokenised_where_a_model_is_trained_on_it(tmp_path, trains):
    loaded = load_recipe(ROOT / "recipes/miniature/recipe.toml", [f"run.output={tmp_path}/run"])
    prompts = load_prompt_set(loaded.recipe.prompts, loaded.folder)
    begun = OpenRun.begin(loaded, load_tasks(loaded), prompts, ProgressLine(io.StringIO(), time.monotonic))
    run = replace(begun, trains=trains)
    pools = StagePools(run.recipe, run.energy, run.engines, SendBook(run.store, run.recipe))
    generate_stage(run, arm_spec("seeds"), [], pools)
    run.tokens.wait()
    sealed, encoder = read_sealed(run.arm("seeds").child(DATASET_FOLDER).uri), load_encoder(trainable_model(run))
    sources = [Source(uri, content) for uri, content in zip(sealed.files, sealed.hashes, strict=True)]
    assert len(sources) == len(run.tasks)
    folder = Path(token_folder(run))
    assert {is_prepared(source, folder, encoder, run.recipe.training) for source in sources} == {trains}
