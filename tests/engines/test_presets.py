import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.engines.config import PoolConfig, VllmEngine
from generation.engines.device import GIB, H100, H200, Device, detect_device
from generation.engines.model_facts import ModelFacts, model_facts
from generation.engines.presets import MAX_RUNG, PRESETS, choose_settings
from generation.engines.vllm_arguments import engine_arguments, executor_backend
from tests.engines.models import MINIATURE

L40S = Device("gpu", "L40S", 48 * GIB)
CPU = Device("cpu", "CPU", 32 * GIB)
DEVICES = (H100, H200, L40S, CPU)
TINY = ModelFacts(2_500_000, True, 5_000_000, 512)
QWEN_05 = ModelFacts(494_000_000, True, 988_000_000, 12 * 1024)
QWEN3_17 = ModelFacts(1_700_000_000, True, 3_400_000_000, 112 * 1024)
LLAMA_3 = ModelFacts(3_200_000_000, True, 6_400_000_000, 112 * 1024)
QWEN3_8 = ModelFacts(8_200_000_000, True, 16_400_000_000, 144 * 1024)


def engine(**settings: object) -> VllmEngine:
    return VllmEngine.model_validate({"model": "owner/name", **settings})


@pytest.mark.parametrize(
    ("facts", "device", "max_num_seqs", "max_num_batched_tokens"),
    [
        (QWEN_05, H100, 1024, 16384), (QWEN_05, H200, 1024, 16384), (QWEN_05, L40S, 256, 8192), (QWEN_05, CPU, 128, 2048),
        (TINY, CPU, 1024, 8192),
        (QWEN3_17, H100, 512, 16384), (QWEN3_17, H200, 512, 16384),
        (LLAMA_3, H100, 512, 16384), (LLAMA_3, H200, 512, 16384),
        (QWEN3_8, H200, 512, 16384), (ModelFacts(), H100, 384, 16384), (ModelFacts(), L40S, 128, 8192),
    ],
)  # fmt: skip
def test_what_the_recipe_leaves_open_follows_model_and_device(
    facts: ModelFacts, device: Device, max_num_seqs: int, max_num_batched_tokens: int
) -> None:
    chosen = choose_settings(engine(), facts, device)
    assert (chosen.max_num_seqs, chosen.max_num_batched_tokens) == (max_num_seqs, max_num_batched_tokens)
    assert device.name in chosen.why


def test_fewer_sequences_run_where_the_cache_holds_no_more() -> None:
    chosen = choose_settings(engine(), QWEN3_8, H100)
    assert 256 <= chosen.max_num_seqs < 384
    assert "KV cache" in chosen.why
    assert choose_settings(engine(kv_cache_dtype="fp8"), QWEN3_8, H200).max_num_seqs == 512
    assert choose_settings(engine(max_model_len=32768), QWEN3_8, H100).max_num_seqs == 32


FACTS = st.builds(
    lambda parameters, kv: ModelFacts(parameters, True, 2 * parameters, kv),
    st.integers(10**5, 7 * 10**10),
    st.integers(1024, 2**20),
)
DEVICE = st.builds(Device, st.sampled_from(["gpu", "cpu"]), st.just("any"), st.integers(2 * GIB, 300 * GIB))


@given(FACTS, DEVICE, st.integers(128, 131072), st.integers(1, 4), st.integers(0, MAX_RUNG))
def test_every_choice_is_one_that_vllm_takes(
    facts: ModelFacts, device: Device, max_model_len: int, replicas_per_gpu: int, rung: int
) -> None:
    chosen = choose_settings(engine(max_model_len=max_model_len), facts, device, replicas_per_gpu, rung)
    assert chosen.max_num_seqs % 16 == 0 or chosen.max_num_seqs < 16
    assert 1 <= chosen.max_num_seqs <= chosen.max_num_batched_tokens
    assert 0 < chosen.memory_share * replicas_per_gpu <= 1
    assert chosen.kv_cache_bytes is None or chosen.kv_cache_bytes >= max_model_len * (facts.kv_bytes_per_token or 0)


@given(FACTS, st.sampled_from(DEVICES), st.integers(128, 8192), st.integers(1, 3))
def test_sequences_and_prefixes_fit_the_memory_that_is_left(
    facts: ModelFacts, device: Device, max_model_len: int, replicas_per_gpu: int
) -> None:
    chosen = choose_settings(engine(max_model_len=max_model_len), facts, device, replicas_per_gpu)
    if device.kind == "gpu" and chosen.max_num_seqs > 16:
        held = (chosen.max_num_seqs / 4 + 2) * max_model_len * (facts.kv_bytes_per_token or 0)
        assert held + (facts.weight_bytes or 0) <= chosen.memory_share * device.memory_bytes * 1.001


def test_the_recipes_values_win() -> None:
    own = engine(
        max_num_seqs=7, max_num_batched_tokens=100, kv_cache_bytes=2**30, gpu_memory_utilization=0.5, block_size=16
    )
    for device in DEVICES:
        chosen = choose_settings(own, QWEN3_8, device, replicas_per_gpu=2)
        assert (chosen.max_num_seqs, chosen.max_num_batched_tokens, chosen.block_size) == (7, 100, 16)
        assert (chosen.kv_cache_bytes, chosen.memory_share) == (2**30, 0.5)


def test_replicas_of_one_gpu_divide_it_and_measure_nothing_of_each_other() -> None:
    assert PoolConfig(engine=engine(), gpus=0.33).replicas_per_gpu == 3
    assert PoolConfig(engine=engine(), gpus=2).replicas_per_gpu == 1
    alone, shared = (choose_settings(engine(), QWEN_05, H100, replicas) for replicas in (1, 2))
    assert (alone.memory_share, shared.memory_share) == (0.92, 0.46)
    assert (alone.max_num_seqs, shared.max_num_seqs) == (1024, 512)
    assert alone.kv_cache_bytes is None
    assert shared.kv_cache_bytes is not None
    assert 2 * (shared.kv_cache_bytes + 988_000_000) < 0.92 * 80 * GIB


@pytest.mark.parametrize("device", DEVICES)
def test_each_rung_takes_less(device: Device) -> None:
    for own in (engine(), engine(max_num_seqs=300, max_num_batched_tokens=9000, kv_cache_bytes=2**34)):
        ladder = [choose_settings(own, QWEN3_17, device, rung=rung) for rung in range(MAX_RUNG + 1)]
        for above, below in itertools.pairwise(ladder):
            assert below.max_num_seqs < above.max_num_seqs
            assert below.max_num_batched_tokens < above.max_num_batched_tokens
            assert below.memory_share <= above.memory_share
            assert (below.kv_cache_bytes or math.inf) < (above.kv_cache_bytes or math.inf) or not above.kv_cache_bytes
        assert ladder[-1].memory_share < ladder[0].memory_share
        assert "steps down" in ladder[1].why


def test_the_table_has_a_row_for_everything() -> None:
    assert {row.kind for row in PRESETS if row.max_parameters == math.inf and not row.min_memory_gib} == {"gpu", "cpu"}
    assert all(row.max_num_seqs % 16 == 0 for row in PRESETS)


def test_without_a_gpu_the_device_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect_device().kind == "cpu"


def test_settings_that_decide_throughput_are_explicit() -> None:
    config = engine()
    gpu = engine_arguments(config, choose_settings(config, QWEN_05, H200), on_cpu=False)
    assert (gpu["max_cudagraph_capture_size"], gpu["max_num_seqs"]) == (2048, 1024)
    assert (gpu["block_size"], gpu["prefix_caching_hash_algo"]) == (32, "xxhash")
    assert "async_scheduling" not in gpu
    assert gpu["disable_log_stats"]
    cpu = engine_arguments(config, choose_settings(config, QWEN_05, CPU), on_cpu=True)
    assert (cpu["max_cudagraph_capture_size"], cpu["block_size"]) == (None, 32)
    assert cpu["kv_cache_memory_bytes"] is not None
    assert (
        len({engine_arguments(config, choose_settings(config, QWEN_05, CPU), on_cpu=True)["seed"] for _ in range(5)})
        == 5
    )


def test_several_gpus_of_a_node_fail_together_and_those_of_several_nodes_go_through_ray() -> None:
    assert executor_backend(engine()) == "uni"
    assert executor_backend(engine(tensor_parallel=2)) == "mp"
    assert executor_backend(engine(tensor_parallel=8, pipeline_parallel=2)) == "ray"


def test_pickled_weights_are_never_loaded() -> None:
    config = engine()
    assert engine_arguments(config, choose_settings(config, QWEN_05, CPU), on_cpu=True)["load_format"] == "safetensors"


def test_every_argument_is_one_that_vllm_has() -> None:
    from vllm.engine.arg_utils import EngineArgs

    config = engine(model=str(MINIATURE))
    arguments = engine_arguments(config, choose_settings(config, model_facts(config), CPU), on_cpu=True)
    assert EngineArgs(**arguments).max_num_seqs == 1024
