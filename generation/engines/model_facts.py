"""What a model weighs, from its config.json and the headers of its safetensors files; no weight is read."""

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generation.engines.config import VllmEngine
from generation.errors import RecipeError

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
STRETCHED = ("linear", "dynamic", "yarn")
"""Rotary embeddings that reach `factor` times further than the model's own positions."""
_HEADER_LIMIT_BYTES = 100_000_000
_SIZE_IN_NAME = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([BbMm])(?![A-Za-z])")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes of a model in the engine of a recipe; None where this machine does not know.

    Attributes:
        parameters: Their number.
        exact: False where it is only what the model's name says.
        weight_bytes: In the engine's number format, over all of its GPUs.
        kv_bytes_per_token: Of the KV cache, over all of its GPUs.
    """

    parameters: int | None = None
    exact: bool = False
    weight_bytes: int | None = None
    kv_bytes_per_token: int | None = None


def model_facts(engine: VllmEngine) -> ModelFacts:
    """Facts of a folder here, or what the name of a hub id says.

    Raises:
        RecipeError: The folder's files are not those of a model.
    """
    folder = Path(engine.model)
    if not folder.is_dir():
        parameters = _size_in_name(engine.model)
        width = DTYPE_BYTES.get(engine.dtype, 2)
        return ModelFacts(parameters, weight_bytes=parameters * width if parameters else None)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        parameters = sum(_parameters(file) for file in sorted(folder.glob("*.safetensors")))
    except (OSError, ValueError, struct.error) as error:
        raise RecipeError(f"{folder}: is no readable model: {error}; name another folder") from error
    if not parameters:
        raise RecipeError(f"{folder}: holds no *.safetensors; name a folder with a model's weights")
    text: dict[str, Any] = config.get("text_config", config)
    dtype = str(text.get("dtype") or text.get("torch_dtype") or "bfloat16") if engine.dtype == "auto" else engine.dtype
    width = DTYPE_BYTES.get(dtype, 2)
    return ModelFacts(
        parameters, True, parameters * width, _kv_bytes(text, 1 if engine.kv_cache_dtype == "fp8" else width)
    )


def facts_or_none(engine: VllmEngine) -> ModelFacts:
    """Facts as far as they can be had; what is wrong with the files the engine will say."""
    try:
        return model_facts(engine)
    except RecipeError:
        return ModelFacts()


def context_tokens(model: str) -> int | None:
    """The longest context that a model was made for, as vLLM will see it; None where this machine does not know."""
    try:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    text: dict[str, Any] = config.get("text_config", config)
    rope: dict[str, Any] = text.get("rope_scaling") or text.get("rope_parameters") or {}
    longest = text.get("max_position_embeddings")
    if longest and rope.get("rope_type", rope.get("type")) in STRETCHED:
        return round(rope.get("original_max_position_embeddings", longest) * rope.get("factor", 1.0))
    return longest


def _parameters(file: Path) -> int:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > _HEADER_LIMIT_BYTES:
            raise ValueError(f"{file.name}: no safetensors header")
        header = json.loads(stream.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _kv_bytes(config: Mapping[str, Any], width: int) -> int | None:
    """Keys and values, of every layer and KV head."""
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    if not layers or not heads or config.get("kv_lora_rank"):  # latent attention caches something else
        return None
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    return 2 * layers * (config.get("num_key_value_heads") or heads) * head_size * width


def _size_in_name(name: str) -> int | None:
    found = _SIZE_IN_NAME.findall(name.replace("-", " ").replace("_", " "))
    return round(float(found[-1][0]) * (1e9 if found[-1][1] in "Bb" else 1e6)) if found else None
