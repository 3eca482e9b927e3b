"""How fast a model can be served on a device at best, from its shape and the device's peaks: what measured speed is a fraction of. Pure.

    decode step   linear     max(weights read once / bandwidth, 2 x parameters x batch / FLOPs)
                  attention  max(keys and values read / bandwidth, FLOPs of attention / FLOPs)
                  logits     batch x vocabulary x 4 bytes, written and read in bf16, / bandwidth
    prefill                  (2 x parameters x tokens + attention) / FLOPs

The kernels of a step run one after the other, so its bound is their sum. Engines read a shared prefix once for each sequence: that gives
the *achievable* bound. The *ideal* one reads it once for each of the prefixes that are in use. Kernel launches, norms and communication are
not in it, so no run reaches 1; the best published ones reach 0.5 to 0.72 of the achievable bound.

Source:
    The roofline model: Williams, Waterman and Patterson 2009, Communications of the ACM 52(4).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOGIT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a device can do at most.

    Attributes:
        flops: Dense bf16 operations a second.
        bytes_per_second: Of its memory.
    """

    flops: float
    bytes_per_second: float

    def __mul__(self, devices: float) -> "Peaks":
        return Peaks(self.flops * devices, self.bytes_per_second * devices)


PEAKS = {
    "H200": Peaks(989e12, 4.8e12),
    "H100": Peaks(989e12, 3.35e12),
    "A100": Peaks(312e12, 2.039e12),
    "A100-80G": Peaks(312e12, 2.039e12),
    "A100-40G": Peaks(312e12, 1.555e12),
    "L40S": Peaks(362e12, 0.864e12),
}
"""By Ray's name of the device (`accelerator_type`), in its SXM form where there are several.

Source:
    NVIDIA's data sheets of H200, H100, A100 and L40S: dense bf16 on tensor cores, without sparsity.
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a token costs in a dense transformer.

    Attributes:
        parameters: Those that every token meets: all but the input embedding.
        layers: Their number.
        heads: Query heads of a layer.
        kv_heads: Key and value heads of a layer.
        head_size: Numbers in each.
        vocabulary: Logits of a token.
        weight_bytes: Of a parameter.
        kv_bytes: Of a number in the KV cache.
    """

    parameters: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    weight_bytes: int = 2
    kv_bytes: int = 2

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * self.kv_bytes


@dataclass(frozen=True, slots=True)
class Load:
    """A decode step.

    Attributes:
        batch: Sequences in it.
        prefix: Tokens of each that it shares with others.
        own: Tokens of each that it does not share, on average over its life.
        prefixes: Prefixes that are in use.
    """

    batch: float
    prefix: float
    own: float
    prefixes: float = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """What was done, in counts that were measured.

    Attributes:
        steps: Steps of the engines.
        requests: Requests that were finished.
        prompt_tokens: Of these, cached ones included.
        cached_tokens: Those from the prefix cache.
        output_tokens: Generated.
        prefixes: Shared prefixes that were in use at a time.
    """

    steps: int
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    prefixes: int = 1


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least time that some work takes.

    Attributes:
        achievable: With an engine that reads a shared prefix once for each sequence.
        ideal: With one that reads it once.
    """

    achievable: float
    ideal: float


def shape_of(config: Mapping[str, Any], weight_bytes: int = 2, kv_bytes: int = 2) -> Shape | None:
    """From a `config.json` of the Llama and Qwen families; None for mixtures of experts and what lacks a size."""
    text: Mapping[str, Any] = config.get("text_config", config)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    if any(not text.get(name) for name in names) or any("expert" in name for name in text):
        return None
    hidden, inner, layers, heads, vocabulary = (int(text[name]) for name in names)
    kv_heads = int(text.get("num_key_value_heads") or heads)
    head_size = int(text.get("head_dim") or hidden // heads)
    attention = hidden * head_size * (2 * heads + 2 * kv_heads)
    parameters = layers * (attention + 3 * hidden * inner) + vocabulary * hidden
    return Shape(parameters, layers, heads, kv_heads, head_size, vocabulary, weight_bytes, kv_bytes)


def linear_seconds(shape: Shape, peaks: Peaks, batch: float) -> float:
    """Matrix products of a decode step."""
    read = shape.parameters * shape.weight_bytes / peaks.bytes_per_second
    return max(read, 2 * shape.parameters * batch / peaks.flops)


def attention_seconds(shape: Shape, peaks: Peaks, load: Load, *, shared: bool) -> float:
    """Attention of a decode step; with `shared`, each prefix is read once."""
    prefix_tokens = load.prefixes * load.prefix if shared else load.batch * load.prefix
    tokens = prefix_tokens + load.batch * (load.own + 1)  # one more is written
    flops = 4 * shape.layers * shape.heads * shape.head_size * (load.prefix + load.own) * load.batch
    return max(tokens * shape.kv_bytes_per_token / peaks.bytes_per_second, flops / peaks.flops)


def logits_seconds(shape: Shape, peaks: Peaks, batch: float) -> float:
    """Writing and reading the logits of a decode step."""
    return batch * shape.vocabulary * LOGIT_BYTES / peaks.bytes_per_second


def prefill_seconds(shape: Shape, peaks: Peaks, tokens: float, cached: float) -> float:
    """A prompt of which `tokens` are computed after `cached` ones."""
    attention = 4 * shape.layers * shape.heads * shape.head_size * (tokens * cached + tokens**2 / 2)
    return (2 * shape.parameters * tokens + attention) / peaks.flops


def step_seconds(shape: Shape, peaks: Peaks, load: Load, *, shared: bool) -> float:
    """A whole decode step."""
    attention = attention_seconds(shape, peaks, load, shared=shared)
    return linear_seconds(shape, peaks, load.batch) + attention + logits_seconds(shape, peaks, load.batch)


def bound(shape: Shape, peaks: Peaks, work: Work) -> Bounds | None:
    """The least time for some work; None for none. From the mean request and the mean step, which makes it no larger than it is."""
    if not (work.steps and work.requests and work.output_tokens):
        return None
    prefix, computed = work.cached_tokens / work.requests, work.prompt_tokens - work.cached_tokens
    suffix, generated = computed / work.requests, work.output_tokens / work.requests
    load = Load(work.output_tokens / work.steps, prefix, suffix + generated / 2, work.prefixes)
    prefill = work.requests * prefill_seconds(shape, peaks, suffix, prefix)
    achievable, ideal = (work.steps * step_seconds(shape, peaks, load, shared=shared) for shared in (False, True))
    return Bounds(prefill + achievable, prefill + ideal)
