"""Model FLOPs of a step and the peak of a device: what the measured time is a fraction of (MFU)."""

from dataclasses import dataclass
from typing import Any

BF16_PEAKS = {
    "A100": 312e12,
    "L40S": 362e12,
    "H100 PCIE": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
}
"""Dense bf16 operations a second by a part of the device's name; the first that fits counts.

Source:
    NVIDIA's data sheets of these devices, on tensor cores, without sparsity (half of what they print with it).
"""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Fields of a model's configuration that say that a token does not meet every parameter."""


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 operations a second of a device such as `NVIDIA H100 80GB HBM3`; None where its data sheet is not in the table."""
    name = device_name.upper()
    return next((peak for part, peak in BF16_PEAKS.items() if part in name), None)


@dataclass(frozen=True, slots=True)
class ModelFlops:
    """What training a dense transformer on a token costs, forward and backward; nothing that is computed twice counts twice.

    Attributes:
        per_token: Of the layers: 6 for each parameter, 4 for a frozen one (it needs no gradient of its own).
        per_supervised_token: Of the output head, whose logits are needed where a token is supervised only.
        per_square: Of causal attention, for each squared token of a document.
    """

    per_token: float
    per_supervised_token: float
    per_square: float

    def of(self, tokens: int, supervised_tokens: int, squares: int) -> float:
        """FLOPs of a step.

        Args:
            tokens: Without padding.
            supervised_tokens: Those of them that the loss is on.
            squares: Sum of the squared lengths of the documents: packed documents do not see one another.

        Source:
            6 N tokens + 6 layers x heads x head size x squares, N without embeddings: Kaplan et al. 2020, arXiv:2001.08361, and for the
            attention, halved since it is causal, Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
        """
        return self.per_token * tokens + self.per_supervised_token * supervised_tokens + self.per_square * squares


def model_flops(model: Any) -> ModelFlops | None:
    """Those of a Hugging Face causal model; None for a mixture of experts, whose tokens do not meet every parameter."""
    config = model.config.get_text_config()
    if any((getattr(config, name, 0) or 0) > 1 for name in _EXPERTS):
        return None
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    layers = [parameter for parameter in model.parameters() if parameter is not embedding and parameter is not head]
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelFlops(
        per_token=sum(_per_token(parameter) for parameter in layers),
        per_supervised_token=_per_token(head),
        per_square=6 * config.num_hidden_layers * config.num_attention_heads * head_size,
    )


def _per_token(parameter: Any) -> float:
    numbers = getattr(parameter, "ds_numel", None) or parameter.numel()  # under ZeRO-3 a rank holds a part of each
    return (6 if parameter.requires_grad else 4) * numbers
