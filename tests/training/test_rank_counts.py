"""The number of ranks, and how many rows a rank computes at once, say how a job runs and nothing about what it learns."""

from pathlib import Path

import pytest

from tests.training.build_job import make_job, write_dataset, write_model
from tests.training.gang import run_gang, said
from training.metrics import read_metrics

SETTINGS = {"rows_per_step": 8, "max_steps": 20, "epochs": 9, "clip_norm": None, "weight_decay": 0.1}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return write_model(folder / "model"), write_dataset(folder / "dataset"), None


def losses(inputs, folder, world, **settings):
    job = make_job(folder, *inputs, **{**SETTINGS, **settings})
    assert run_gang(job, world) == [0] * world, said(job)[-3000:]
    return [line["loss"] for line in read_metrics(Path(job.metrics))]


def test_the_first_20_losses_are_the_same_for_1_2_and_4_ranks_and_any_accumulation(inputs, tmp_path):
    alone = losses(inputs, tmp_path / "alone", 1, rows_per_micro_batch=8)
    assert len(alone) == 20
    assert alone[-1] < alone[0] - 1
    for world, rows, stage in [(1, 3, 2), (2, 1, 2), (2, 4, 1), (4, 1, 3), (4, 2, 0)]:
        other = losses(inputs, tmp_path / f"{world}-{rows}", world, rows_per_micro_batch=rows, zero_stage=stage)
        assert other == pytest.approx(alone, abs=1e-5, rel=0)
