"""vLLM's settings, all explicit that matter: its own defaults depend on who asks, and are small for some. Imports no vLLM."""

import os
import secrets
from typing import Any

from generation.engines.config import VllmEngine
from generation.engines.presets import EngineSettings
from generation.engines.vllm_errors import error_log

GRAPHS_PER_SEQUENCE = 2
"""CUDA graphs reach up to so many tokens of a step for each sequence: it also computes the prompts that take the place of what ended.
vLLM has the same factor, but stops at 512 tokens. On an H200 a step of 128 sequences of a 0.5B model with graphs up to 128 took 13.1 ms, one of
256 with graphs up to 1,024 took 7.6 ms (benchmarks/RESULTS.md); it also had 8 times the tokens a step, so graphs need not be all of it."""
EXECUTE_TIMEOUT_SECONDS = 120
"""A step of several GPUs that takes longer hangs; vLLM waits 300 s."""

LEAN_SCHEDULER, LEAN_VERSION = "generation.engines.vllm_scheduler.lean_scheduler", "0.32."
"""It stands in for methods of vLLM's own scheduler as they are in this version; any other keeps them."""


def engine_arguments(
    config: VllmEngine, settings: EngineSettings, *, on_cpu: bool, canary: bool = False
) -> dict[str, Any]:
    """Fields of vLLM's `EngineArgs`. `async_scheduling` stays unset, which is on wherever it can be."""
    graphs = not on_cpu and not config.enforce_eager
    return {
        "model": config.model,
        "revision": config.revision,
        "tokenizer_revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        "load_format": "safetensors",  # never pickles, which a model from elsewhere may hold
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
        "prefix_caching_hash_algo": "xxhash",  # of the prompts of one run; 0.7 of the time of sha256
        "block_size": settings.block_size,
        "kv_cache_memory_bytes": settings.kv_cache_bytes,
        "kv_cache_dtype": config.kv_cache_dtype,
        "gpu_memory_utilization": settings.memory_share,
        "enforce_eager": config.enforce_eager,
        "max_cudagraph_capture_size": GRAPHS_PER_SEQUENCE * settings.max_num_seqs if graphs else None,
        "tensor_parallel_size": config.tensor_parallel,
        "pipeline_parallel_size": config.pipeline_parallel,
        "distributed_executor_backend": executor_backend(config),
        # Fresh for every engine: two replicas with one seed would write the same texts for the same prompts.
        "seed": secrets.randbelow(2**31),
        "disable_log_stats": not canary,
        "use_tqdm_on_load": False,
    }


def executor_backend(config: VllmEngine) -> str:
    """How an engine reaches its GPUs: in its own process, on its node (all die together), or through Ray on several nodes."""
    if config.pipeline_parallel > 1:
        return "ray"
    return "mp" if config.tensor_parallel > 1 else "uni"


def set_environment(config: VllmEngine) -> None:
    """What vLLM and torch read from the environment when they are imported."""
    os.environ["VLLM_NO_USAGE_STATS"] = os.environ["DO_NOT_TRACK"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", str(EXECUTE_TIMEOUT_SECONDS))
    if config.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(config.threads)  # read once, when torch loads its OpenMP
    if executor_backend(config) != "ray":  # its workers on other machines could not open the log
        os.environ.update(error_log().variables)
