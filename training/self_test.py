"""Proves at start, on a few random tokens, what a wrong attention or an unusual output layer would break in silence."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from generation.errors import TrainingError
from training.config import TrainingConfig
from training.data import IGNORED
from training.loss import LossModel

_DOCUMENT_TOKENS = 24
_LEAKS = {"float32": 1e-3, "bfloat16": 0.2}
"""Packed documents may differ from separate ones by this share of what seeing one another changes; rounding in bfloat16 gives a few percent."""
_LOSS_ERROR = 2e-3


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Of some rows, float32, one line a token: logits, gradients of the embeddings; and the loss, summed."""

    logits: torch.Tensor
    gradients: torch.Tensor
    loss: float


def check_model(model: LossModel, config: TrainingConfig, device: torch.device) -> None:
    """Compare documents packed into one row with the same documents alone, and the loss with that of the model's own logits.

    Logits and gradients are compared, the latter those of every token's embedding: they come through all layers, and leave nothing
    on any weight. Dropout is off meanwhile. All ranks must call it.

    Args:
        model: The one inside the engine, with DeepSpeed's hooks: as training calls it, whatever the ZeRO stage.
        config: Its attention and micro-batch decide the shape that is tried.
        device: Where the model is.

    Raises:
        TrainingError: The model or its attention ignores where a document starts, or the model's logits are not its output layer
            applied to its last hidden states.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (2 * config.rows_per_micro_batch, _DOCUMENT_TOKENS)
    ids = torch.randint(model.model.get_input_embeddings().num_embeddings, shape, generator=generator).to(device)
    restarts = torch.arange(_DOCUMENT_TOKENS, device=device).repeat(len(ids), 1)
    targets = functional.pad(ids[:, 1:], (0, 1), value=IGNORED)
    rows = 1 if config.attention == "flash_attention_2" else config.rows_per_micro_batch
    onward = torch.arange(ids.numel() // rows, device=device).repeat(rows, 1)
    with _dropout_off(model):
        separate = _outcome(model, ids, restarts, targets)
        packed = _outcome(model, *(tensor.reshape(rows, -1) for tensor in (ids, restarts, targets)))
        joined = _outcome(model, ids.reshape(rows, -1), onward, targets.reshape(rows, -1))
    _refuse_other_loss(separate, targets)
    _refuse_leak("logits", packed.logits - separate.logits, joined.logits - separate.logits, config)
    _refuse_leak("gradients", packed.gradients - separate.gradients, joined.gradients - separate.gradients, config)


def _refuse_leak(name: str, leak: torch.Tensor, signal: torch.Tensor, config: TrainingConfig) -> None:
    leaked, joined = leak.abs().mean().item(), signal.abs().mean().item()
    if not leaked <= _LEAKS[config.precision] * joined:
        raise TrainingError(
            f"packed documents see one another: {name} differ by {leaked:.3g} from those of separate documents (by {joined:.3g} if they "
            f"were one document) with training.attention = {config.attention}; try another attention"
        )


def _refuse_other_loss(found: _Outcome, targets: torch.Tensor) -> None:
    own = functional.cross_entropy(found.logits, targets.flatten(), ignore_index=IGNORED, reduction="sum").item()
    if not abs(found.loss - own) <= _LOSS_ERROR * own:
        raise TrainingError(
            f"the loss of {found.loss:.6g} is not the {own:.6g} that the model's own logits give: it does more to its last hidden states "
            f"than its output layer says (it may cap or scale logits); train another model"
        )


def _outcome(model: LossModel, ids: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor) -> _Outcome:
    embedded: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    with torch.no_grad():
        logits = model(ids, positions)
    hook = model.model.get_input_embeddings().register_forward_hook(keep)
    try:
        loss = model(ids, positions, targets)
    finally:
        hook.remove()
    (gradients,) = torch.autograd.grad(loss, embedded)
    return _Outcome(logits.float().flatten(0, 1), gradients.float().flatten(0, 1), loss.item())


@contextmanager
def _dropout_off(model: LossModel) -> Generator[None]:
    model.eval()
    try:
        yield
    finally:
        model.train()
