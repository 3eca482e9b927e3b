"""The loss on held-out rows, and the choice of the weights that are published."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tests.training.build_job import conversations, make_job, write_dataset, write_model, write_rows
from tests.training.gang import run_gang, said
from training.chat import load_encoder
from training.checkpoint import complete_checkpoints, read_marker, sha256_of
from training.job import LINEAGE, UNCHECKED
from training.metrics import read_metrics
from training.prepare import prepare
from training.token_rows import open_rows

SETTINGS = {
    "max_steps": 12,
    "rows_per_step": 4,
    "epochs": 20,
    "learning_rate": 3e-2,
    "held_out_rows": 5,
    "evaluate_every_steps": 5,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    # Few rows, learnt by heart soon: what is held out then gets worse.
    held_out = write_rows(folder / "human" / "held-out.parquet", conversations(7, 98))
    return write_model(folder / "model"), write_dataset(folder / "dataset", (12,)), None, held_out


def train(job, world):
    assert run_gang(job, world) == [0] * world, said(job)[-3000:]
    return job, read_metrics(Path(job.metrics))


@pytest.fixture(scope="module")
def best(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs") / "best"
    job = make_job(folder, *inputs, **SETTINGS, zero_stage=2, publish="best", checkpoint_every_steps=2)
    return train(job, 2)


@pytest.fixture(scope="module")
def last(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs") / "last"
    job = make_job(folder, *inputs, **{**SETTINGS, "evaluate_every_steps": 99}, zero_stage=2, checkpoint_every_steps=12)
    return train(job, 2)


def best_step(lines):
    """Of those with a checkpoint: every second one."""
    return min(lines[1::2], key=lambda line: line["evaluation"]["human"])["step"]


def test_each_source_is_evaluated_every_so_many_steps_at_every_checkpoint_that_competes_and_after_the_last(best, last):
    assert [line["step"] for line in best[1] if line["evaluation"]] == [2, 4, 5, 6, 8, 10, 12]
    assert [line["step"] for line in last[1] if line["evaluation"]] == [12]
    assert {tuple(line["evaluation"]) for line in best[1] if line["evaluation"]} == {("human", "synthetic")}


def test_an_evaluation_changes_nothing_about_the_training_and_repeats_to_the_bit(best, last):
    assert [line["loss"] for line in best[1]] == [line["loss"] for line in last[1]]
    assert best[1][-1]["evaluation"] == last[1][-1]["evaluation"]


@pytest.mark.parametrize(("world", "zero_stage"), [(1, 3), (3, 3)])
def test_any_number_of_ranks_finds_the_same_held_out_losses(best, inputs, tmp_path, world, zero_stage):
    settings = {**SETTINGS, "zero_stage": zero_stage, "rows_per_micro_batch": 2}
    _, lines = train(make_job(tmp_path / "job", *inputs, **settings, checkpoint_every_steps=12), world)
    for step in (5, 10, 12):
        assert lines[step - 1]["evaluation"] == pytest.approx(best[1][step - 1]["evaluation"], abs=1e-4)


def test_the_published_weights_are_those_of_the_checkpoint_with_the_lowest_loss_and_the_lineage_says_so(best, last):
    step = best_step(best[1])
    assert step < 12
    lineages = [json.loads((Path(job.output) / LINEAGE).read_text()) for job, _ in (best, last)]
    assert [lineage["published_step"] for lineage in lineages] == [step, 12]
    assert [lineage["steps"] for lineage in lineages] == [12, 12]
    weights = [(Path(job.output) / "model.safetensors").read_bytes() for job, _ in (best, last)]
    assert weights[0] != weights[1]


def test_the_lineage_lists_every_file_of_the_model_by_its_digest(best):
    output = Path(best[0].output)
    listed = json.loads((output / LINEAGE).read_text())["files"]
    assert listed == {path.name: sha256_of(path) for path in output.iterdir() if path.name != LINEAGE}
    assert listed.keys() >= {"model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"}


def test_markers_hold_the_loss_of_the_human_examples_and_the_best_one_is_kept(best):
    found = {read_marker(path)["step"]: read_marker(path) for path in complete_checkpoints(Path(best[0].checkpoints))}
    assert found.keys() == {best_step(best[1]), 10, 12}
    for step, marker in found.items():
        assert marker["evaluation_loss"] == best[1][step - 1]["evaluation"]["human"]


def test_the_loss_of_a_source_is_the_mean_over_its_supervised_tokens_one_document_after_the_other(best):
    job, lines = best
    encoder = load_encoder(job.model)
    held_out = open_rows(prepare(job, encoder, 0, 1), job.config.held_out_rows).held_out
    model = AutoModelForCausalLM.from_pretrained(job.output, dtype=torch.float32)
    for source, rows in held_out.items():
        total = 0.0
        for row in range(len(rows.lengths)):
            ids = torch.from_numpy(rows.tokens(row).astype("int64"))
            with torch.no_grad():
                logits = model(ids[None]).logits[0]
            for start, end in rows.loss_spans(row):
                total += functional.cross_entropy(logits[start - 1 : end - 1], ids[start:end], reduction="sum").item()
        mean = total / int(rows.supervised.sum())
        assert mean == pytest.approx(
            lines[best_step(lines) - 1]["evaluation"][source], rel=0.02
        )  # weights were rounded


def test_a_model_that_is_checked_later_is_exported_and_not_published(inputs, tmp_path):
    job = replace(make_job(tmp_path / "job", *inputs, **{**SETTINGS, "max_steps": 1}), checked_later=True)
    train(job, 1)
    assert job.is_exported
    assert (Path(job.output) / UNCHECKED).exists()
    assert not (Path(job.output) / LINEAGE).exists()
    before = (Path(job.output) / UNCHECKED).stat().st_mtime_ns
    train(job, 1)
    assert (Path(job.output) / UNCHECKED).stat().st_mtime_ns == before
