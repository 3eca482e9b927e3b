"""A job goes on with another number of ranks than it was saved by, as if it had always had them."""

import shutil
from pathlib import Path

import pytest

from tests.training.build_job import make_job, write_dataset, write_model
from tests.training.gang import run_gang, said
from training.checkpoint import UNIVERSAL, complete_checkpoints
from training.job import TrainingJob
from training.metrics import read_metrics

SETTINGS = {"rows_per_step": 6, "epochs": 9, "max_steps": 12, "weight_decay": 0.1, "checkpoint_every_steps": 6}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return write_model(folder / "model"), write_dataset(folder / "dataset"), None


def run(job: TrainingJob, world: int) -> list[float]:
    assert run_gang(job, world) == [0] * world, said(job)[-3000:]
    return [line["loss"] for line in read_metrics(Path(job.metrics))]


def back_to_half(job: TrainingJob) -> None:
    """As if the job had been killed after its checkpoint in the middle."""
    shutil.rmtree(job.output)
    shutil.rmtree(complete_checkpoints(Path(job.checkpoints))[-1])


def universal(job: TrainingJob) -> Path:
    return Path(job.checkpoints) / UNIVERSAL / "step-00000006"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_losses_go_on_with_another_number_of_ranks(inputs, tmp_path, stage, before, after):
    job = make_job(tmp_path, *inputs, zero_stage=stage, **SETTINGS)
    losses = run(job, before)
    back_to_half(job)
    assert run(job, after) == pytest.approx(losses, abs=1e-5, rel=0)
    starts = read_metrics(Path(job.checkpoints) / "starts.jsonl")
    assert [(start["step"], len(start["processes"])) for start in starts] == [(0, before), (6, after)]
    assert not universal(job).exists()


@pytest.mark.slow
def test_a_conversion_that_was_not_finished_or_was_damaged_is_made_again(inputs, tmp_path):
    job = make_job(tmp_path, *inputs, zero_stage=1, **{**SETTINGS, "checkpoint_every_steps": 6})
    losses = run(job, 2)
    back_to_half(job)
    universal(job).mkdir(parents=True)
    (universal(job) / "zero").write_text("half")
    assert run(job, 1) == pytest.approx(losses, abs=1e-5, rel=0)


@pytest.mark.slow
def test_another_zero_stage_is_refused(inputs, tmp_path):
    job = make_job(tmp_path, *inputs, zero_stage=3, **SETTINGS)
    run(job, 1)
    back_to_half(job)
    other = make_job(tmp_path, *inputs, zero_stage=2, **SETTINGS)
    assert run_gang(other, 1) == [10]
    assert "set training.zero_stage = 3" in said(job)
