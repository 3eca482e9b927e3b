"""What is written of each step: the JSONL file, TensorBoard, Weights & Biases."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from generation.errors import TrainingError
from tests.training.build_job import make_job
from training.metrics import StepMetrics, read_metrics, summarise
from training.ranks import Ranks
from training.record import recorded

LEADER = Ranks(0, 1, torch.device("cpu"))
LINE = StepMetrics(
    step=1, epoch=0, loss=2.0, learning_rate=0.1, gradient_norm=None, tokens=90, supervised_tokens=30, supervised=1 / 3, padding=0.1,
    rank_spread=0.0, data_wait=0.25, seconds=2.0, tokens_per_second=45.0, mfu=None,
)  # fmt: skip


def write(job, done, steps):
    with recorded(job, done, LEADER) as record:
        for step in steps:
            record(
                replace(LINE, step=step, loss=float(step + 100 * done), evaluation={"human": 5.0} if step == 2 else {})
            )


def board_of(job):
    board = EventAccumulator(str(Path(job.metrics).with_name("tensorboard")))
    board.Reload()
    return board


def test_a_resumed_job_has_each_step_once_in_the_file_and_in_tensorboard(tmp_path):
    job = make_job(tmp_path, tmp_path, "", None)
    write(job, 0, [1, 2, 3, 4])
    write(job, 2, [3, 4, 5])
    wanted = [(1, 1.0), (2, 2.0), (3, 203.0), (4, 204.0), (5, 205.0)]
    assert [(line["step"], line["loss"]) for line in read_metrics(Path(job.metrics))] == wanted
    board = board_of(job)
    assert [(event.step, event.value) for event in board.Scalars("loss")] == wanted
    assert [event.step for event in board.Scalars("evaluation/human")] == [2]
    assert "mfu" not in board.Tags()["scalars"]


def test_a_step_is_in_tensorboard_once_it_is_recorded(tmp_path):
    job = make_job(tmp_path, tmp_path, "", None)
    with recorded(job, 0, LEADER) as record:
        record(LINE)
        assert [event.step for event in board_of(job).Scalars("tokens_per_second")] == [1]


def test_ranks_other_than_the_first_write_nothing(tmp_path):
    job = make_job(tmp_path, tmp_path, "", None, wandb_project="p")
    with recorded(job, 0, replace(LEADER, rank=1)) as record:
        record(LINE)
    assert not list(tmp_path.iterdir())


def test_weights_and_biases_get_the_numbers_and_nothing_of_the_machine_or_the_job(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    job = make_job(tmp_path / "a-folder", tmp_path / "secret-model", "secret-dataset", None, wandb_project="a-project")
    write(job, 0, [1, 2, 3])
    (file,) = Path(job.metrics).parent.glob("wandb/offline-run-*/*.wandb")
    sent = file.read_bytes()
    assert all(word in sent for word in (b"a-folder", b"a-project", b"tokens_per_second", b"evaluation/human"))
    private = ["secret", str(tmp_path), Path(sys.executable).name, "pytest", Path.cwd().name, "learning_rate_"]
    assert [word for word in private if word.encode() in sent] == []


def test_weights_and_biases_that_are_not_installed_are_an_error_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrainingError, match=r"psi\[wandb\]"):
        write(make_job(tmp_path, tmp_path, "", None, wandb_project="p"), 0, [1])


def test_totals_weigh_steps_by_what_they_are_shares_of(tmp_path):
    job = make_job(tmp_path, tmp_path, "", None)
    with recorded(job, 0, LEADER) as record:
        record(replace(LINE, mfu=0.5))
        record(
            replace(
                LINE, step=2, tokens=50, padding=0.5, seconds=6.0, data_wait=0.05, mfu=0.1, evaluation={"human": 1.5}
            )
        )
    totals = summarise(Path(job.metrics), tmp_path)
    wanted = {
        "tokens_per_second": 140 / 8,
        "padding": 1 - 140 / 200,
        "data_wait": 0.1,
        "mfu": 0.2,
        "supervised": 60 / 140,
    }
    assert {name: totals[name] for name in wanted} == pytest.approx(wanted)
    assert (totals["steps"], totals["final_loss"], totals["evaluation"]) == (2, 2.0, {"human": 1.5})
