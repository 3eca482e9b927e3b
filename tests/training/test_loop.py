"""The whole job on real DeepSpeed, gloo and Ray Train."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cluster.train_job import run_training, train_on_rank
from generation.errors import NotSealedError, TrainingError
from tests.local_ray import local_ray
from tests.training.build_job import (
    conversations,
    make_job,
    run_ranks,
    write_inputs,
)
from training.checkpoint import complete_checkpoints
from training.job import LINEAGE
from training.loop import train
from training.metrics import read_metrics

SETTINGS = {"rows_per_step": 5, "max_steps": 16, "epochs": 4, "checkpoint_every_steps": 4}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def two_ranks(inputs, tmp_path_factory):
    job = make_job(tmp_path_factory.mktemp("jobs") / "two", *inputs, zero_stage=2, ranks=2, **SETTINGS)
    return job, run_ranks(job, 2)


@pytest.fixture(scope="module")
def cluster():
    with local_ray(cpus=3):
        yield


def losses(metrics):
    return [line["loss"] for line in metrics]


def kill_a_rank_after_its_first_checkpoint(job, killed):
    checkpoints = Path(job.checkpoints)
    while not complete_checkpoints(checkpoints):
        time.sleep(0.01)
    process = json.loads((checkpoints / "starts.jsonl").read_text().splitlines()[0])["processes"][1]
    os.kill(int(process.partition(":")[2]), signal.SIGKILL)
    killed.set()


def test_one_rank_and_two_ranks_see_the_same_losses_under_different_zero_stages(inputs, two_ranks, tmp_path):
    alone = run_ranks(make_job(tmp_path / "one", *inputs, zero_stage=3, **SETTINGS), 1)
    assert losses(alone) == pytest.approx(losses(two_ranks[1]), abs=1e-4)
    assert losses(alone)[-1] < losses(alone)[0] - 1
    assert [line["step"] for line in alone] == list(range(1, 17))


def test_a_killed_rank_is_started_again_by_ray_train_and_nothing_about_the_losses_changes(
    inputs, two_ranks, cluster, tmp_path
):
    job = make_job(tmp_path / "killed", *inputs, zero_stage=2, ranks=2, max_restarts=1, **SETTINGS)
    killed = threading.Event()
    threading.Thread(target=kill_a_rank_after_its_first_checkpoint, args=(job, killed), daemon=True).start()
    summary = run_training(job)
    assert killed.is_set()
    assert summary["restarts"] == 1
    lines = read_metrics(Path(job.metrics))
    assert losses(lines) == losses(two_ranks[1])
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert summary["steps"] == 16
    assert summary["supervised_tokens"] == sum(line["supervised_tokens"] for line in two_ranks[1])
    weights = [(Path(folder) / "model.safetensors").read_bytes() for folder in (job.output, two_ranks[0].output)]
    assert weights[0] == weights[1]


def test_an_error_of_ours_comes_back_from_the_ranks_as_it_was(inputs, cluster, tmp_path):
    job = make_job(tmp_path / "short", *inputs, max_tokens=3, max_restarts=0)
    with pytest.raises(TrainingError, match=r"longer than training.max_tokens = 3"):
        run_training(job)


def test_a_rank_that_does_not_see_the_drivers_scratch_refuses_to_train(inputs, tmp_path):
    job = make_job(tmp_path / "apart", *inputs)
    with pytest.raises(TrainingError, match=r"apart/checkpoints: not the same folder .*; set run.scratch to a folder"):
        train_on_rank({"job": job.to_json(), "probe": str(tmp_path / "on-the-driver-only")})


def test_a_dataset_that_is_not_sealed_before_the_deadline_is_an_error_of_its_own(inputs, tmp_path):
    job = make_job(tmp_path / "early", inputs[0], str(tmp_path), None, dataset_deadline_seconds=0.01)
    with pytest.raises(NotSealedError):
        run_training(job)


def test_each_step_says_how_fast_it_was_and_what_its_time_and_places_went_into(two_ranks):
    for line in two_ranks[1]:
        assert line["tokens_per_second"] == pytest.approx(line["tokens"] / line["seconds"])
        assert line["supervised"] == pytest.approx(line["supervised_tokens"] / line["tokens"])
        assert all(0 <= line[share] < 1 for share in ("padding", "data_wait", "rank_spread"))
        assert line["mfu"] is None  # of a CPU no peak is known
    assert any(line["rank_spread"] > 0 for line in two_ranks[1])
    assert list(Path(two_ranks[0].metrics).parent.glob("tensorboard/events*"))


def test_a_look_at_the_first_rows_lies_beside_the_data_and_what_is_logged_holds_no_text_of_them(two_ranks):
    samples = Path(two_ranks[0].checkpoints) / "samples.txt"
    said = (samples.parent.parent / "output.log").read_text()
    first = [talk[1]["content"] for talk in conversations(40, 0)[:3]]
    assert all(f"<<{answer}" in line for answer, line in zip(first, samples.read_text().splitlines(), strict=True))
    assert str(samples) in said
    assert not [answer for answer in first if len(answer) > 3 and answer in said]


def test_the_published_model_loads_and_says_where_it_comes_from(two_ranks):
    output = Path(two_ranks[0].output)
    model, report = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not any(report.values())
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(two_ranks[0].model).chat_template
    assert GenerationConfig.from_pretrained(output).eos_token_id == [tokenizer.eos_token_id]
    lineage = json.loads((output / LINEAGE).read_text())
    assert (lineage["rows"], lineage["rows_with_repeats"], lineage["steps"]) == (71, 77, 16)
    assert not list(output.parent.glob(".output*"))


def test_a_job_whose_model_is_published_returns_at_once(two_ranks):
    before = Path(two_ranks[0].metrics).stat().st_mtime_ns
    train(two_ranks[0])
    assert run_training(two_ranks[0])["final_loss"] == two_ranks[1][-1]["loss"]
    assert Path(two_ranks[0].metrics).stat().st_mtime_ns == before
