"""Loads the model that is trained."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from generation.errors import TrainingError
from training.config import TrainingConfig
from training.lora import add_adapters
from training.loss import LossModel

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


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
