"""Loads the model that is trained."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from generation.errors import TrainingError
from training.config import TrainingConfig
from training.lora import add_adapters
from training.loss import LossModel

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

_STRETCHED = ("linear", "dynamic", "yarn")


def load_model(folder: str, config: TrainingConfig) -> LossModel:
    """The model of a Hugging Face folder with its adapters and its loss, in training mode.

    Raises:
        TrainingError: It cannot be loaded from safetensors, not with this attention, or adapters do not fit it.
    """
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES[config.precision],
            attn_implementation=config.attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, ImportError) as error:
        raise TrainingError(
            f"{folder}: cannot load the model (training.attention = {config.attention}): {error}"
        ) from error
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.lora:
        add_adapters(model, config.lora)
    return LossModel(model, config.loss_chunk_tokens).train()


def check_fit(model: LossModel, largest_token: int, longest_row: int) -> None:
    """Make sure that a model can read the data.

    Args:
        model: Before or after DeepSpeed took it over.
        largest_token: Of the ids in the data.
        longest_row: Tokens.

    Raises:
        TrainingError: A token has no embedding, or a row is longer than what the model was made for: rotary embeddings take any position,
            and the model has never seen those beyond.
    """
    embeddings = model.model.get_input_embeddings().num_embeddings
    if largest_token >= embeddings:
        raise TrainingError(
            f"token {largest_token} of the data has no embedding, the model has {embeddings}: its folder needs the tokenizer that it was "
            "made with, or embeddings for the tokens that were added"
        )
    positions = _positions(model.model.config.get_text_config())
    if positions and longest_row > positions:
        raise TrainingError(
            f"the longest row has {longest_row} tokens, and the model was made for {positions}; set training.max_tokens = {positions}"
        )


def _positions(config: Any) -> int | None:
    """What a model was made for, where its configuration says it; rotary embeddings may be stretched by a factor."""
    positions, rope = getattr(config, "max_position_embeddings", None), getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)  # models with a sliding window have one for each kind of layer
    if positions and rope.get("rope_type") in _STRETCHED:
        return round(rope.get("original_max_position_embeddings", positions) * rope.get("factor", 1.0))
    return positions
