"""Low-rank adapters: put into a model before it is trained, and merged into its weights when it is published."""

from typing import Any

import torch

from generation.errors import TrainingError
from training.config import LoraConfig

_ADAPTER = "default"


def add_adapters(model: Any, config: LoraConfig) -> None:
    """Freeze a Hugging Face model and put adapters into it, in place. They are drawn from torch's generator.

    Raises:
        TrainingError: peft is not installed, the model has no such layers, or embeddings or output layer would get an adapter.
    """
    try:
        import peft
    except ImportError as error:
        raise TrainingError("training.lora needs peft; install it with: pip install 'psi[lora]'") from error
    targets = config.target_modules
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType] - peft divides it, and takes any number
        lora_dropout=config.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    try:
        peft.inject_adapter_in_model(settings, model, _ADAPTER)
    except ValueError as error:
        raise TrainingError(f"training.lora.target_modules = {targets!r}: {error}") from error
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if any(hasattr(layer, "base_layer") for layer in ends):
        raise TrainingError(
            f"training.lora.target_modules = {targets!r}: embeddings and output layer cannot have an adapter, since they may be one weight"
        )


def merged_weights(model: Any) -> dict[str, torch.Tensor]:
    """The weights of a Hugging Face model by their own names, with adapters, if there are any, added to them.

    Each is summed in float32 and rounded once, to the model's number format.
    """
    state = model.state_dict()
    weights = {name.replace(".base_layer.", "."): weight for name, weight in state.items() if ".lora_" not in name}
    for name, layer in model.named_modules():
        if hasattr(layer, "get_delta_weight"):
            weight, added = weights[f"{name}.weight"], layer.get_delta_weight(_ADAPTER)
            weights[f"{name}.weight"] = (weight.float() + added.float()).to(weight.dtype)
    return weights
