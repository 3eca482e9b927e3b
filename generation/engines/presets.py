"""What a recipe leaves open about a vLLM engine, chosen by model, device and share of the device. Imports no engine."""

import math
from dataclasses import dataclass

from generation.engines.config import VllmEngine
from generation.engines.device import GIB, Device, detect_device
from generation.engines.model_facts import ModelFacts, facts_or_none

MAX_RUNG = 3
"""How often the engines of a pool that ran out of memory are started again with less."""
SEQUENCE_STEP = 16
"""CUDA graphs are captured for multiples of it; a batch just above one falls off them (vllm issue 57355)."""
BLOCK_SIZE = 32
"""A shared prefix is found by whole blocks: of 128 (vLLM's own on CPU) up to 127 tokens are computed again, of 16 twice as many are hashed.
Kernels on CPU want multiples of 32."""

_MEMORY_SHARE = 0.92
_SHARE_OF_RUNG = (1.0, 1.0, 0.9, 0.8)
_OWN_SHARE = 0.25
"""Of `max_model_len`, what a running sequence holds alone on average. The rest is a shared prefix, or not reached."""
_PREFIX_SHARE, _PREFIXES = 0.5, 4
"""Of `max_model_len`, the length of a shared prefix; so many are in use at once."""
_ACTIVATION_BYTES_PER_TOKEN = 4 * GIB // 16384
"""Activations of a step with 16,384 tokens take 2 to 4 GiB."""
_CPU_CACHE_SHARE, _CPU_CACHE_BYTES = 0.25, 4 * GIB
"""Of a machine's memory, the most that one CPU engine caches in; so much where the model's need is not known."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A row of the table. The first whose limits hold is taken: devices by their memory, models by size and KV cache."""

    kind: str
    min_memory_gib: int
    max_parameters: float
    max_kv_bytes_per_token: float
    max_num_seqs: int
    max_num_batched_tokens: int


PRESETS = (
    # H200 and larger. Beyond about 200 sequences weights cost nothing more, and reading the KV cache decides: in the shape of Qwen3-1.7B
    # (112 KiB a token) 128, 256 and 512 sequences gave 12,300, 15,400 and 15,900 tokens/s (benchmarks/RESULTS.md); 1,024 were
    # not measured. Small caches (Qwen2.5-0.5B: 12 KiB a token) are read faster than the host makes steps, so their steps are large.
    Preset("gpu", 120, 5e9, 32 * 1024, 1024, 16384),
    Preset("gpu", 120, math.inf, math.inf, 512, 16384),
    # H100, A100 with 80 GB.
    Preset("gpu", 70, 1.2e9, 32 * 1024, 1024, 16384),
    Preset("gpu", 70, 5e9, math.inf, 512, 16384),
    Preset("gpu", 70, 10e9, math.inf, 384, 16384),
    Preset("gpu", 70, math.inf, math.inf, 256, 16384),
    # Any other GPU.
    Preset("gpu", 0, 5e9, math.inf, 256, 8192),
    Preset("gpu", 0, math.inf, math.inf, 128, 8192),
    # Steps of a model of 2.5 M parameters cost less a token, the more sequences they have (benchmarks/scheduler.py).
    Preset("cpu", 0, 5e6, math.inf, 1024, 8192),
    Preset("cpu", 0, 0.2e9, math.inf, 256, 4096),
    Preset("cpu", 0, math.inf, math.inf, 128, 2048),
)
_UNKNOWN_PARAMETERS, _UNKNOWN_KV_BYTES_PER_TOKEN = 8e9, 128 * 1024
"""A model of which nothing is known is taken for one of 8 B."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is started with.

    Attributes:
        max_num_seqs: Sequences that run at once.
        max_num_batched_tokens: Tokens computed in one step.
        block_size: Tokens in a block of the KV cache; None: the attention decides.
        memory_share: Of the device, what this engine may fill.
        kv_cache_bytes: Size of the KV cache; None: what the share leaves.
        why: In short, for people.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int | None
    memory_share: float
    kv_cache_bytes: int | None
    why: str


def choose_settings(
    engine: VllmEngine, facts: ModelFacts, device: Device, replicas_per_gpu: int = 1, rung: int = 0
) -> EngineSettings:
    """The recipe's values, and presets for what it leaves open.

    Args:
        engine: Its section of the recipe.
        facts: Of its model.
        device: Where it runs.
        replicas_per_gpu: Engines that share a GPU.
        rung: How often an engine like it ran out of memory. Each rung halves the batch and a KV cache of fixed size; later ones also
            take a smaller share of the device. They lower the recipe's own values too.
    """
    preset = _preset(facts, device)
    batched = engine.max_num_batched_tokens or preset.max_num_batched_tokens
    seqs = engine.max_num_seqs or max(SEQUENCE_STEP, _whole_steps(preset.max_num_seqs // replicas_per_gpu))
    share = (engine.gpu_memory_utilization or _MEMORY_SHARE / replicas_per_gpu) * _SHARE_OF_RUNG[rung]
    cache = _cache_bytes(engine, facts, device, share, batched, seqs)
    room = _sequences_in(cache, engine, facts)
    cut = engine.max_num_seqs is None and room < seqs
    if cut:
        seqs = max(SEQUENCE_STEP, _whole_steps(room))
    # Engines that start side by side on a GPU would take each other's weights for their own when they measure what is left.
    fixed = cache if engine.kv_cache_bytes or device.kind == "cpu" or replicas_per_gpu > 1 else None
    why = f"{device.name} and {'KV cache' if cut else 'model size'}"
    if rung:
        seqs, fixed = _halved(seqs, rung), fixed and max(fixed >> rung, _least_cache(engine, facts))
        batched, why = batched >> rung, f"{why}, {rung} of {MAX_RUNG} steps down for want of memory"
    known = device.kind == "cpu" or facts.kv_bytes_per_token is not None
    block_size = engine.block_size or (BLOCK_SIZE if known else None)
    return EngineSettings(seqs, max(batched, seqs), block_size, round(share, 3), fixed, why)


def settings_here(engine: VllmEngine, replicas_per_gpu: int = 1, rung: int = 0) -> EngineSettings:
    """The settings of an engine on this machine."""
    return choose_settings(engine, facts_or_none(engine), detect_device(), replicas_per_gpu, rung)


def _preset(facts: ModelFacts, device: Device) -> Preset:
    parameters = facts.parameters or _UNKNOWN_PARAMETERS
    kv_bytes = facts.kv_bytes_per_token or _UNKNOWN_KV_BYTES_PER_TOKEN
    return next(
        row
        for row in PRESETS
        if row.kind == device.kind
        and row.min_memory_gib * GIB <= device.memory_bytes
        and row.max_parameters >= parameters
        and row.max_kv_bytes_per_token >= kv_bytes
    )


def _cache_bytes(
    engine: VllmEngine, facts: ModelFacts, device: Device, share: float, batched: int, seqs: int
) -> int | None:
    """Size of the KV cache, or None where only the engine can tell."""
    if engine.kv_cache_bytes:
        return engine.kv_cache_bytes
    if device.kind == "cpu":
        if engine.gpu_memory_utilization:
            return None
        wanted = (
            _CPU_CACHE_BYTES if not facts.kv_bytes_per_token else _cache_for(seqs, engine, facts.kv_bytes_per_token)
        )
        return max(min(wanted, int(_CPU_CACHE_SHARE * device.memory_bytes)), _least_cache(engine, facts))
    if facts.weight_bytes is None:
        return None
    gpus = engine.tensor_parallel * engine.pipeline_parallel
    left = gpus * (share * device.memory_bytes - batched * _ACTIVATION_BYTES_PER_TOKEN) - facts.weight_bytes
    return max(int(left), _least_cache(engine, facts))


def _cache_for(seqs: int, engine: VllmEngine, kv_bytes_per_token: int) -> int:
    tokens = engine.max_model_len * (_PREFIX_SHARE * _PREFIXES + _OWN_SHARE * seqs)
    return int(tokens * kv_bytes_per_token)


def _sequences_in(cache: int | None, engine: VllmEngine, facts: ModelFacts) -> float:
    """Sequences that run in a cache without one being put off."""
    if cache is None or not facts.kv_bytes_per_token:
        return math.inf
    tokens = cache / facts.kv_bytes_per_token
    return max(0.0, (tokens - engine.max_model_len * _PREFIX_SHARE * _PREFIXES) / (engine.max_model_len * _OWN_SHARE))


def _least_cache(engine: VllmEngine, facts: ModelFacts) -> int:
    """It starts with no less: one sequence of full length, and a spare block on either side."""
    return (engine.max_model_len + 3 * (engine.block_size or BLOCK_SIZE)) * (facts.kv_bytes_per_token or 0)


def _halved(seqs: int, rung: int) -> int:
    halved = max(1, seqs >> rung)
    return _whole_steps(halved) if halved >= SEQUENCE_STEP else halved


def _whole_steps(seqs: float) -> int:
    return int(seqs) // SEQUENCE_STEP * SEQUENCE_STEP
