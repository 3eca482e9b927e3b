import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from generation.roofline import PEAKS
from training.flops import ModelFlops, model_flops, peak_flops

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
LAYER = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32
"""Parameters of a layer: attention, feed-forward, two norms; the final norm has 32 more."""


@pytest.mark.parametrize("tied", [True, False])
def test_flops_are_those_of_the_layers_the_head_where_it_is_needed_and_the_documents_attention(tied):
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, num_key_value_heads=4, tie_word_embeddings=tied))
    found = model_flops(model)
    assert found == ModelFlops(6 * (2 * LAYER + 32), 6 * 50 * 32, 6 * 2 * 32)
    assert found.of(100, 10, 100 * 100) - found.of(100, 10, 2 * 50 * 50) == 6 * 2 * 32 * 5000


def test_frozen_parameters_need_no_gradient_of_their_own():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, num_key_value_heads=4))
    model.requires_grad_(False)
    model.model.norm.requires_grad_(True)
    assert model_flops(model).per_token == 4 * 2 * LAYER + 6 * 32


def test_no_flops_are_claimed_for_a_mixture_of_experts():
    config = MixtralConfig(**SHAPE, num_key_value_heads=4, num_local_experts=4)
    assert model_flops(AutoModelForCausalLM.from_config(config)) is None


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", None),
        ("Tesla T4", None),
    ],
)
def test_the_peak_of_a_device_is_known_by_its_name_or_not_claimed(device, peak):
    assert peak_flops(device) == peak


def test_training_and_generation_agree_on_peaks():
    assert {name: peak_flops(name) for name in PEAKS} == {name: peaks.flops for name, peaks in PEAKS.items()}
