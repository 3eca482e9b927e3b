import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from generation.errors import TrainingError
from tests.training.build_job import make_job, write_dataset, write_model
from tests.training.gang import run_gang, said
from tests.training.test_loss import random_batch
from training.checkpoint import complete_checkpoints
from training.config import TrainingConfig
from training.lora import merged_weights
from training.loss import summed_loss
from training.metrics import read_metrics
from training.model import load_model
from training.self_test import check_model

LORA = {"rank": 4, "alpha": 16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {tied: write_model(tmp_path_factory.mktemp("model"), tied=tied) for tied in (True, False)}


def load(folder, **settings):
    values = {"precision": "float32", "lora": LORA, "loss_chunk_tokens": 5, **settings}
    torch.manual_seed(0)
    return load_model(str(folder), TrainingConfig.model_validate(values))


def with_trained_adapters(folder, **settings):
    """Adapters start as no change at all; these are some."""
    model = load(folder, **settings)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


def test_every_linear_layer_but_the_head_gets_an_adapter_and_nothing_else_is_trained(folders):
    model = load(folders[False])
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * 7 * 2
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    batch = random_batch()
    untouched = load(folders[False], lora=None)
    torch.testing.assert_close(summed_loss(model, batch), summed_loss(untouched, batch))


def test_named_layers_alone_get_one(folders):
    model = load(folders[True], lora={**LORA, "target_modules": ["q_proj", "v_proj"]})
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 2 * 2


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_merged_weights_are_a_plain_model_with_the_logits_of_base_and_adapters(folders, tied, precision):
    model = with_trained_adapters(folders[tied], precision=precision).eval()
    batch = random_batch()
    plain = AutoModelForCausalLM.from_pretrained(folders[tied], dtype=model.model.dtype).eval()
    with torch.no_grad():
        base = plain(batch.input_ids).logits
        plain.load_state_dict(merged_weights(model.model))
        merged, adapted = plain(batch.input_ids).logits, model(batch.input_ids, batch.position_ids)
    error, change = (merged - adapted).abs().mean(), (adapted - base).abs().mean()
    assert change > 0.3
    assert error < (1e-5 if precision == "float32" else 0.05) * change


def test_gradient_checkpointing_changes_no_gradient_of_an_adapter(folders):
    found = []
    for checkpointing in (False, True):
        model = with_trained_adapters(folders[True], gradient_checkpointing=checkpointing)
        summed_loss(model, random_batch()).backward()
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[1][name], gradient)


def test_the_self_test_is_not_fooled_by_dropout(folders):
    settings = {"precision": "float32", "lora": {**LORA, "dropout": 0.5}}
    model = with_trained_adapters(folders[True], **settings)
    check_model(model, TrainingConfig.model_validate(settings), torch.device("cpu"))
    assert summed_loss(model, random_batch()) != summed_loss(model, random_batch())


def test_without_peft_the_error_names_the_extra(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TrainingError, match=r"pip install 'psi\[lora\]'"):
        load(folders[True])


@pytest.mark.parametrize(
    ("targets", "problem"),
    [(["nowhere"], "nowhere"), (["lm_head"], "output layer cannot"), (["embed_tokens"], "embeddings and")],
)
def test_layers_that_cannot_have_an_adapter_are_refused(folders, targets, problem):
    with pytest.raises(TrainingError, match=rf"training\.lora\.target_modules.*{problem}"):
        load(folders[True], lora={**LORA, "target_modules": targets})


def test_zero_stage_3_with_adapters_is_refused_in_the_recipe():
    with pytest.raises(ValidationError, match="lora needs zero_stage 1 or 2"):
        TrainingConfig.model_validate({"lora": {}, "zero_stage": 3})


def run(job, world=2):
    assert run_gang(job, world) == [0] * world, said(job)[-3000:]
    return read_metrics(Path(job.metrics))


def test_adapters_are_trained_saved_resumed_and_published_merged(folders, tmp_path):
    dataset = write_dataset(tmp_path / "dataset")
    settings = {"lora": LORA, "zero_stage": 2, "ranks": 2, "precision": "bfloat16", "rows_per_step": 4, "epochs": 4}
    settings |= {"max_steps": 8, "checkpoint_every_steps": 4, "gradient_checkpointing": True}
    whole = make_job(tmp_path / "whole", folders[True], dataset, None, **settings)
    lines = run(whole)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    # A job that goes on from the first of the two checkpoints.
    first, second = complete_checkpoints(Path(whole.checkpoints))
    part = make_job(tmp_path / "part", folders[True], dataset, None, **settings)
    Path(part.checkpoints).mkdir(parents=True)
    first.rename(Path(part.checkpoints) / first.name)
    assert [line["loss"] for line in run(part)] == [line["loss"] for line in lines[4:]]
    outputs = [load_file(Path(job.output) / "model.safetensors") for job in (whole, part)]
    assert all(torch.equal(weight, outputs[1][name]) for name, weight in outputs[0].items())
    # What is published is the base with the adapters of the last checkpoint, which holds nothing else but a tied weight's second name.
    saved = torch.load(second / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    assert {name for name in saved if ".lora_" not in name} <= {"model.lm_head.weight"}
    model = load(folders[True], precision="bfloat16")
    model.load_state_dict(saved, strict=False)
    published = AutoModelForCausalLM.from_pretrained(whole.output)
    for name, weight in merged_weights(model.model).items():
        assert torch.equal(published.state_dict()[name], weight.bfloat16()), name
    base = AutoModelForCausalLM.from_pretrained(folders[True], dtype=torch.bfloat16)
    assert torch.equal(base.model.embed_tokens.weight, published.model.embed_tokens.weight)
    assert not torch.equal(base.model.layers[0].mlp.up_proj.weight, published.model.layers[0].mlp.up_proj.weight)


@pytest.mark.slow
def test_adapters_go_on_with_another_number_of_ranks(folders, tmp_path):
    dataset = write_dataset(tmp_path / "dataset")
    settings = {"lora": LORA, "zero_stage": 2, "rows_per_step": 4, "epochs": 4, "max_steps": 8}
    settings |= {"checkpoint_every_steps": 4, "weight_decay": 0.1}
    whole = make_job(tmp_path / "whole", folders[False], dataset, None, **settings)
    lines = run(whole)
    part = make_job(tmp_path / "part", folders[False], dataset, None, **settings)
    Path(part.checkpoints).mkdir(parents=True)
    first = complete_checkpoints(Path(whole.checkpoints))[0]
    first.rename(Path(part.checkpoints) / first.name)
    losses = [line["loss"] for line in run(part, 1)]
    assert losses == pytest.approx([line["loss"] for line in lines[4:]], abs=1e-5)
