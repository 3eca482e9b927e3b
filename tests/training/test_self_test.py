import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from generation.errors import TrainingError
from tests.training.build_job import make_job, write_model
from training.model import load_model
from training.self_test import check_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def load(folder, tmp_path, **settings):
    config = make_job(tmp_path, folder, "", None, **settings).config
    return load_model(str(folder), config), config


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_packed_documents_equal_separate_ones_in_logits_and_gradients(folder, tmp_path, attention, rows, precision):
    model, config = load(folder, tmp_path, attention=attention, rows_per_micro_batch=rows, precision=precision)
    check_model(model, config, CPU)
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", ["a mask of ones", "a cache"])
def test_a_mask_or_a_cache_which_joins_documents_is_refused(folder, tmp_path, attention, precision, fault):
    model, config = load(folder, tmp_path, attention=attention, precision=precision)

    def plant(_module, args, inputs):
        mask = {"attention_mask": torch.ones_like(inputs["input_ids"])}
        return args, {**inputs, **(mask if fault == "a mask of ones" else {"use_cache": True})}

    model.model.base_model.register_forward_pre_hook(plant, with_kwargs=True)
    with pytest.raises(TrainingError, match="packed documents see one another: logits"):
        check_model(model, config, CPU)


def test_documents_that_meet_in_the_backward_pass_alone_are_refused(folder, tmp_path):
    model, config = load(folder, tmp_path)
    model.model.model.layers[0].register_forward_hook(lambda _module, _inputs, output: MeetBackward.apply(output))
    with pytest.raises(TrainingError, match="packed documents see one another: gradients"):
        check_model(model, config, CPU)


class MeetBackward(torch.autograd.Function):
    """A wrong kernel: every position gets some gradient of the one after it."""

    @staticmethod
    def forward(ctx, hidden):
        return hidden.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient + 0.1 * gradient.roll(-1, dims=1)


@pytest.mark.parametrize(
    ("kind", "own"),
    [("granite", {"logits_scaling": 8.0}), ("cohere", {"logit_scale": 0.0625}), ("qwen3", {}), ("olmo2", {})],
)
def test_models_that_scale_their_logits_are_trained_on_the_scaled_ones(tmp_path, kind, own):
    model, config = load(write_other_model(tmp_path, kind, **own), tmp_path)
    check_model(model, config, CPU)


def test_a_model_that_caps_its_logits_is_refused(tmp_path):
    model, config = load(write_other_model(tmp_path, "gemma2", final_logit_softcapping=2.0), tmp_path)
    with pytest.raises(TrainingError, match="it may cap or scale logits"):
        check_model(model, config, CPU)


def write_other_model(folder, kind, **own):
    set_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    values = {**shape, **ids, "num_key_value_heads": 1, "vocab_size": 126, "initializer_range": 0.2, **own}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values)).save_pretrained(folder)
    return folder
