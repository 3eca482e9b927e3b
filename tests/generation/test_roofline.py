import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.roofline import (
    PEAKS,
    Load,
    Shape,
    Work,
    attention_seconds,
    bound,
    linear_seconds,
    logits_seconds,
    prefill_seconds,
    shape_of,
    step_seconds,
)

MODELS = {
    "Qwen2.5-0.5B": (24, 896, 4864, 14, 2, 64, 151936),
    "Qwen3-0.6B": (28, 1024, 3072, 16, 8, 128, 151936),
    "Qwen2.5-1.5B": (28, 1536, 8960, 12, 2, 128, 151936),
    "Qwen3-1.7B": (28, 2048, 6144, 16, 8, 128, 151936),
    "Llama3.2-3B": (28, 3072, 8192, 24, 8, 128, 128256),
    "Qwen2.5-7B": (28, 3584, 18944, 28, 4, 128, 152064),
    "Llama3.1-8B": (32, 4096, 14336, 32, 8, 128, 128256),
    "Qwen3-8B": (36, 4096, 12288, 32, 8, 128, 151936),
}
"""Layers, hidden and inner size, heads, KV heads, head size and vocabulary of their `config.json`."""

BOUNDS = {
    "Qwen2.5-0.5B": (12, 132, 474, 178, 563),
    "Qwen3-0.6B": (112, 16, 99, 23, 135),
    "Qwen2.5-1.5B": (28, 55, 183, 73, 210),
    "Qwen3-1.7B": (112, 16, 81, 22, 103),
    "Llama3.2-3B": (112, 15, 65, 21, 79),
    "Qwen2.5-7B": (56, 22, 53, 28, 57),
    "Llama3.1-8B": (128, 12, 40, 16, 45),
    "Qwen3-8B": (144, 11, 38, 14, 43),
}
"""KiB of KV cache a token; 1,000 tokens/s on an H100 and an H200, achievable and ideal, of 512 sequences with a shared prefix of 1,500
tokens and 250 of their own, worked out apart from this code."""


def shape(model: str) -> Shape:
    names = (
        "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
        "vocab_size",
    )  # fmt: skip
    found = shape_of(dict(zip(names, MODELS[model], strict=True)))
    assert found is not None
    return found


@pytest.mark.parametrize("model", MODELS)
def test_bounds_are_those_that_were_worked_out_by_hand(model):
    kib, *expected = BOUNDS[model]
    assert shape(model).kv_bytes_per_token == kib * 1024
    load = Load(512, prefix=1500, own=250)
    found = [
        512 / step_seconds(shape(model), PEAKS[device], load, shared=shared) / 1000
        for device in ("H100", "H200")
        for shared in (False, True)
    ]
    assert found == pytest.approx(expected, rel=0.01, abs=0.6)


def test_parameters_are_those_of_the_model_card_without_the_input_embedding():
    assert shape("Qwen2.5-7B").parameters == pytest.approx(7.07e9, rel=0.01)
    assert shape("Llama3.1-8B").parameters == pytest.approx(7.5e9, rel=0.01)


def test_small_batches_are_bound_by_weights_and_large_ones_by_compute():
    one, peaks = shape("Llama3.1-8B"), PEAKS["H100"]
    knee = peaks.flops / peaks.bytes_per_second
    assert knee == pytest.approx(295, rel=0.01)
    assert linear_seconds(one, peaks, 1) == linear_seconds(one, peaks, knee * 0.99)
    assert linear_seconds(one, peaks, 2 * knee) == pytest.approx(2 * linear_seconds(one, peaks, knee))


def test_work_is_bounded_by_its_steps_and_its_prefill():
    one, peaks, load = shape("Qwen2.5-1.5B"), PEAKS["H200"], Load(100, 1000, 150, 2)
    work = Work(1000, 1000, 1100 * 1000, 1000 * 1000, 100 * 1000, prefixes=2)
    found = bound(one, peaks, work)
    assert found is not None
    prefill = 1000 * prefill_seconds(one, peaks, 100, 1000)
    parts = linear_seconds(one, peaks, 100) + logits_seconds(one, peaks, 100)
    for value, shared in ((found.achievable, False), (found.ideal, True)):
        assert value == pytest.approx(prefill + 1000 * (parts + attention_seconds(one, peaks, load, shared=shared)))
    assert bound(one, peaks, Work(0, 0, 0, 0, 0)) is None


@given(st.integers(1, 10**4), st.integers(1, 10**4), st.integers(0, 2000), st.integers(1, 500), st.floats(1, 512))
def test_the_ideal_bound_is_never_above_the_achievable_one(requests, suffix, prefix, generated, batch):
    output = requests * generated
    work = Work(max(1, int(output / batch)), requests, requests * (prefix + suffix), requests * prefix, output)
    found = bound(shape("Qwen3-8B"), PEAKS["L40S"], work)
    assert found is not None
    assert 0 < found.ideal <= found.achievable


def test_what_is_not_known_has_no_shape():
    assert (PEAKS["H100"] * 2).flops == 2 * PEAKS["H100"].flops
    assert shape_of({"hidden_size": 8}) is None
    assert shape_of({"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
                     "vocab_size": 9, "num_experts": 4}) is None  # fmt: skip
