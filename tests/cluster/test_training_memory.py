import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from cluster.training_memory import ModelShape, activation_bytes, lora_parameters, model_shape, training_memory
from tests.training.build_job import write_model
from training.config import LoraConfig, TrainingConfig
from training.lora import add_adapters

GB = 10**9


def memory(parameters=7_500_000_000, shape=None, **settings):
    config = TrainingConfig.model_validate({"max_tokens": 4096, **settings})
    return training_memory(config, parameters, shape)


@pytest.mark.parametrize(("stage", "gigabytes"), [(1, 31.4), (2, 16.6), (3, 1.9)])
def test_states_in_bfloat16_are_those_of_the_zero_papers_figure(stage, gigabytes):
    found = memory(ranks=64, zero_stage=stage)
    assert (found.weights + found.gradients + found.optimizer) / GB == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize(("stage", "each"), [(0, 16), (1, 20), (2, 20), (3, 20)])
def test_float32_takes_16_bytes_a_parameter_and_with_zero_a_second_copy_of_the_weights(stage, each):
    found = memory(1000, precision="float32", zero_stage=stage)
    assert found.weights + found.gradients + found.optimizer == each * 1000
    assert (found.weights, found.gradients) == (4000, 4000)


def test_what_is_offloaded_is_on_the_host():
    cpu, nvme = ({"zero_optimization": {"offload_optimizer": {"device": device}}} for device in ("cpu", "nvme"))
    found = memory(ranks=4, zero_stage=2, deepspeed=cpu)
    assert (found.optimizer, found.gradients) == (0, 0)
    assert found.host == 7_500_000_000 * (12 + 4) / 4
    assert memory(ranks=4, zero_stage=1, deepspeed=nvme).host == 0
    weights = {"zero_optimization": {"offload_param": {"device": "cpu"}, "zero_hpz_partition_size": 2}}
    found = memory(ranks=4, zero_stage=3, deepspeed=weights)
    assert (found.weights, found.host) == (0, 7_500_000_000 * 2 * (1 / 4 + 1 / 2))


def test_buffers_are_deepspeeds_own_sizes_or_those_of_the_user():
    assert memory(zero_stage=2).buffers == 2 * 500_000_000
    assert memory(zero_stage=3).buffers == 2 * (500_000_000 + 1_000_000_000)
    assert memory(zero_stage=2, deepspeed={"zero_optimization": {"reduce_bucket_size": 7}}).buffers == 14
    assert memory(1000, zero_stage=2).buffers == 2 * 1000
    assert memory(precision="float32", zero_stage=0).buffers == 0


def test_adapters_are_counted_as_peft_makes_them_and_all_other_weights_have_no_state(tmp_path):
    folder = str(write_model(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(folder)
    for targets in ("all-linear", ["q_proj", "down_proj"]):
        lora = LoraConfig.model_validate({"rank": 3, "target_modules": targets})
        shape = model_shape(folder)
        adapted = AutoModelForCausalLM.from_pretrained(folder)
        add_adapters(adapted, lora)
        trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
        assert lora_parameters(lora, shape) == trained
    parameters = sum(weight.numel() for weight in model.parameters())
    found = memory(parameters, shape, lora={"rank": 3, "target_modules": targets})
    assert (found.weights, found.gradients, found.optimizer) == (2 * parameters, 2 * trained, 12 * trained)


def test_logits_of_a_chunk_are_a_fraction_of_those_of_a_row():
    shape = ModelShape(1536, 28, 1536, 256, 12, 8960, 151_936)
    chunked, whole = (memory(shape=shape, loss_chunk_tokens=tokens).logits for tokens in (1024, 4096))
    assert (whole - chunked) / 3 == pytest.approx(1024 * 151_936 * 10)
    assert chunked - 1024 * 151_936 * 10 == 151_936 * 1536 * 2
    assert memory(shape=shape, loss_chunk_tokens=1024, lora={}).logits == 1024 * 151_936 * 10


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_are_what_autograd_saves(precision, attention, checkpointing):
    sizes = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, intermediate_size=320, vocab_size=256, attn_implementation=attention)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, precision)).train()
    settings = {"precision": precision, "attention": attention, "max_tokens": 160, "rows_per_micro_batch": 2}
    estimate = activation_bytes(
        TrainingConfig.model_validate({**settings, "gradient_checkpointing": checkpointing}),
        ModelShape(128, 6, 128, 64, 4, 320, 256),
    )
    assert saved_bytes(model, checkpointing) == pytest.approx(estimate, rel=0.1)


def saved_bytes(model, checkpointing):
    """Of a forward pass of two rows of 160 tokens; with checkpointing, of one layer and the inputs of all."""
    found = {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that its memory is not used again
        return tensor

    layers = list(model.model.layers)
    if checkpointing:
        del model.model.layers[1:]
        model.config.num_hidden_layers = 1
    ids = torch.randint(0, 256, (2, 160))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.model(input_ids=ids, position_ids=torch.arange(160).repeat(2, 1), use_cache=False)
    inputs = len(layers) * ids.numel() * 128 * model.dtype.itemsize if checkpointing else 0
    return sum(size for size, _ in found.values()) + inputs


def test_a_mixture_of_experts_or_a_model_elsewhere_has_no_shape(tmp_path):
    assert model_shape("owner/name") is None
    folder = write_model(tmp_path)
    assert model_shape(str(folder)) == ModelShape(32, 2, 32, 32, 2, 64, 126)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("{", '{"num_local_experts": 8,', 1))
    assert model_shape(str(folder)) is None
