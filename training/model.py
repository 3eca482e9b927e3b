"""Loads the model that is trained, and proves at start that documents packed into one row do not see one another."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from generation.errors import TrainingError
from training.config import TrainingConfig
from training.data import IGNORED, Batch
from training.loss import forward

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_DOCUMENT_TOKENS = 24
_LEAK = 0.2
"""Packed documents may differ from separate ones by this share of what seeing one another changes; rounding in bfloat16 gives a few percent."""


def load_model(folder: str, config: TrainingConfig) -> Any:
    """The model of a Hugging Face folder, in training mode.

    Raises:
        TrainingError: It cannot be loaded from safetensors, or not with this attention.
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
    return model.train()


def check_packing(model: Any, vocabulary: int, config: TrainingConfig, device: torch.device) -> None:
    """Compare logits of documents packed into one row with those of the same documents alone.

    Args:
        model: The engine or the model itself, as training will call it.
        vocabulary: Token ids are drawn from [0, vocabulary).
        config: Its attention and micro-batch decide the shape that is tried.
        device: Where the model is.

    Raises:
        TrainingError: They differ: the model or its attention ignores where a document starts.
    """
    generator = torch.Generator().manual_seed(0)
    documents = torch.randint(0, vocabulary, (2 * config.rows_per_micro_batch, _DOCUMENT_TOKENS), generator=generator)
    restarts = torch.arange(_DOCUMENT_TOKENS).repeat(len(documents), 1)
    rows = 1 if config.attention == "flash_attention_2" else config.rows_per_micro_batch
    with torch.no_grad():
        separate = _logits(model, documents, restarts, device)
        packed = _logits(model, documents.reshape(rows, -1), restarts.reshape(rows, -1), device)
        onward = torch.arange(documents.numel() // rows).repeat(rows, 1)
        joined = _logits(model, documents.reshape(rows, -1), onward, device)
    leak = (packed.reshape(separate.shape) - separate).abs().mean().item()
    signal = (joined.reshape(separate.shape) - separate).abs().mean().item()
    if not leak <= max(_LEAK * signal, 1e-5):
        raise TrainingError(
            f"packed documents see one another: logits differ by {leak:.3g} from those of separate documents (by {signal:.3g} if they were "
            f"one document) with training.attention = {config.attention}; try another attention"
        )


def _logits(model: Any, ids: torch.Tensor, positions: torch.Tensor, device: torch.device) -> torch.Tensor:
    batch = Batch(ids, positions, torch.full_like(ids, IGNORED)).to(device)
    return forward(model, batch, torch.arange(ids.shape[1], device=device)).float()
