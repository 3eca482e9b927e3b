"""What a training rank will hold, from the recipe and the model's shape. Formulas that were measured name what was measured."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import REDUCE_BUCKET, LoraConfig, TrainingConfig

_WIDTHS = {"bfloat16": 2, "float32": 4}
_MAX_LIVE = 1_000_000_000
"""Gathered weights that ZeRO-3 holds at most, where `zero_optimization.stage3_max_live_parameters` says nothing."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a dense transformer.

    Attributes:
        hidden: Width of the residual stream.
        layers: Their number.
        heads: Numbers that all query heads of a layer give for a token.
        kv_heads: Numbers that all key heads of a layer give for a token.
        num_heads: Query heads.
        feed_forward: Width of the gated feed-forward layer.
        vocabulary: Rows of the output layer.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    num_heads: int
    feed_forward: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes of one rank at the end of a forward pass, when it holds most.

    Attributes:
        weights: In the precision of the recipe; what other ranks hold is not counted.
        gradients: The same.
        optimizer: Adam's moments, and float32 weights where DeepSpeed keeps them.
        buffers: Gradients on their way, and weights that ZeRO-3 has gathered, at most.
        logits: Of one chunk, and the output layer's gradient that goes with them; None where the model's shape is not known.
        activations: Kept for the backward pass; None likewise.
        host: Offloaded to the host's memory.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    logits: int | None
    activations: int | None
    host: int

    @property
    def device(self) -> int:
        """All that is not offloaded, as far as it is known."""
        known = (self.weights, self.gradients, self.optimizer, self.buffers, self.logits, self.activations)
        return sum(part for part in known if part)


def model_shape(model: str) -> ModelShape | None:
    """The shape of a model folder; None for one that is not here, or no dense transformer."""
    try:
        config: dict[str, Any] = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    config = config.get("text_config", config)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    experts = any("experts" in name and value for name, value in config.items())
    if experts or not all(config.get(name) for name in names):
        return None
    hidden, layers, heads, feed_forward, vocabulary = (int(config[name]) for name in names)
    head_size = config.get("head_dim") or hidden // heads
    kv_heads = config.get("num_key_value_heads") or heads
    return ModelShape(hidden, layers, heads * head_size, kv_heads * head_size, heads, feed_forward, vocabulary)


def training_memory(config: TrainingConfig, parameters: int, shape: ModelShape | None) -> TrainingMemory:
    """Estimate a rank.

    Source:
        2 + 2 + 12 bytes a parameter in bfloat16, spread over the ranks stage by stage: Rajbhandari et al. 2020, arXiv:1910.02054, section
        3.1. In float32, DeepSpeed 0.19.8 was measured to hold 4 + 4 + 8 without ZeRO, and float32 weights once more with it.
    """
    width, ranks, stage = _WIDTHS[config.precision], config.ranks, config.zero_stage
    zero: dict[str, Any] = config.deepspeed.get("zero_optimization", {})
    trained = lora_parameters(config.lora, shape) if config.lora and shape else 0 if config.lora else parameters
    master = 4 if stage or config.precision == "bfloat16" else 0
    optimizer = trained * (8 + master) / (ranks if stage >= 1 else 1)
    gradients = trained * width / (ranks if stage >= 2 else 1)
    weights = parameters * width / (ranks if stage >= 3 else 1)
    hpz = int(zero.get("zero_hpz_partition_size", 1))
    weights += parameters * width / hpz if hpz > 1 else 0
    host = 0.0
    if _device(zero, "offload_optimizer") != "none":
        host += optimizer if _device(zero, "offload_optimizer") == "cpu" else 0
        optimizer = 0
        if stage >= 2:  # the optimizer's copy of them is float32
            host, gradients = host + trained * 4 / ranks, 0
    if _device(zero, "offload_param") != "none":
        host += weights if _device(zero, "offload_param") == "cpu" else 0
        weights = 0
    parts = (round(part) for part in (weights, gradients, optimizer))
    return TrainingMemory(
        *parts,
        buffers=_buffers(zero, config, parameters, trained),
        logits=None if shape is None else _logits(config, shape, width),
        activations=None if shape is None else activation_bytes(config, shape),
        host=round(host),
    )


def lora_parameters(lora: LoraConfig, shape: ModelShape) -> int:
    """Of all adapters, in layers with the usual names."""
    hidden, feed_forward = shape.hidden, shape.feed_forward
    sides = {
        "q_proj": hidden + shape.heads,
        "k_proj": hidden + shape.kv_heads,
        "v_proj": hidden + shape.kv_heads,
        "o_proj": hidden + shape.heads,
        "gate_proj": hidden + feed_forward,
        "up_proj": hidden + feed_forward,
        "down_proj": hidden + feed_forward,
    }
    targets = sides if lora.target_modules == "all-linear" else lora.target_modules
    return lora.rank * shape.layers * sum(sides.get(name, 0) for name in targets)


def activation_bytes(config: TrainingConfig, shape: ModelShape) -> int:
    """What a micro-batch keeps for its backward pass. With gradient checkpointing that is each layer's input, and all of one layer.

    Per token and layer, measured on Llama in transformers 5.19 as what autograd saves: queries, keys, values and the attention's output
    once each; four of the feed-forward's width; of each of the two norms three times the hidden states, which in bfloat16 are one in
    float32 and two. Attention with `eager` keeps its probabilities too, in float32 and in bfloat16.
    """
    width, tokens = _WIDTHS[config.precision], config.rows_per_micro_batch * config.max_tokens
    norms = 2 * (8 if width == 2 else 12) * shape.hidden
    layer = width * (2 * shape.heads + 2 * shape.kv_heads + 4 * shape.feed_forward) + norms
    if config.attention == "eager":
        layer += shape.num_heads * config.max_tokens * (6 if width == 2 else 4) + 2 * width * (
            shape.heads - shape.kv_heads
        )
    kept = layer + shape.layers * width * shape.hidden if config.gradient_checkpointing else shape.layers * layer
    return tokens * (kept + norms // 2)


def _logits(config: TrainingConfig, shape: ModelShape, width: int) -> int:
    """As they are, in float32, and their logarithms, which become the gradient; and the gradient of the whole output layer."""
    chunk = min(config.loss_chunk_tokens, config.rows_per_micro_batch * config.max_tokens)
    copies = width + 8 if width == 2 else 8
    return shape.vocabulary * (chunk * copies + (0 if config.lora else shape.hidden * width))


def _buffers(zero: dict[str, Any], config: TrainingConfig, parameters: int, trained: int) -> int:
    if not config.zero_stage:
        return 0
    bucket = int(zero.get("reduce_bucket_size", min(REDUCE_BUCKET, trained)))
    live = int(zero.get("stage3_max_live_parameters", _MAX_LIVE)) if config.zero_stage == 3 else 0
    return (bucket + min(live, parameters)) * _WIDTHS[config.precision]


def _device(zero: dict[str, Any], key: str) -> str:
    return str((zero.get(key) or {}).get("device", "none"))
