"""The loss: every supervised token of an optimizer step weighs the same, however the step is split over ranks and micro-batches."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from training.data import IGNORED, Batch


def summed_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Cross entropy summed over the supervised tokens of a micro-batch, float32.

    A rank scales it by `ranks / supervised tokens of the whole step`; averaged over ranks by DeepSpeed, the gradient is that of the mean
    over all supervised tokens.

    Args:
        model: The DeepSpeed engine of a `LossModel`, or the `LossModel` itself.
        batch: On the model's device.
    """
    return model(input_ids=batch.input_ids, position_ids=batch.position_ids, targets=batch.targets)


class LossModel(nn.Module):
    """A Hugging Face causal model whose answer to a batch is its loss. This is what DeepSpeed wraps.

    Head and loss are one module, `LossHead`, so that ZeRO-3 gathers the head's weights, tied or not, for both together.
    """

    def __init__(self, model: Any, chunk_tokens: int) -> None:
        """Take a model over; its output layer is replaced.

        Args:
            model: Its weights keep their names, behind `model.`.
            chunk_tokens: Supervised tokens whose logits exist at once.
        """
        super().__init__()
        head = LossHead(model.get_output_embeddings(), chunk_tokens, _logit_scale(model.config.get_text_config()))
        model.set_output_embeddings(head)
        self.model: Any = model

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, targets: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The summed loss, or where no targets are given the model's own logits, shape (rows, length, vocabulary).

        No attention mask and no cache: with either, transformers 5 ignores the restarts of `position_ids` and documents see one another.
        """
        inputs = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": False}
        if targets is None:
            return self.model(**inputs).logits
        hidden = self.model.base_model(**inputs).last_hidden_state
        return self.model.get_output_embeddings()(hidden, targets)


class LossHead(nn.Module):
    """The output layer and the cross entropy over it, some tokens at a time.

    The float32 logits of 4,096 tokens and a vocabulary of 152,000 take 2.5 GB, and their gradient as much again; those of
    1,024 tokens a quarter. Tokens that are not supervised get no logits at all.
    """

    def __init__(self, head: nn.Linear, chunk_tokens: int, scale: float = 1.0) -> None:
        """Take over weight and bias of an output layer; a weight that is tied to the embeddings stays tied.

        Args:
            head: The layer.
            chunk_tokens: Supervised tokens whose logits exist at once.
            scale: What the model multiplies the layer's output with.
        """
        super().__init__()
        self.weight = head.weight
        self.bias: nn.Parameter | None = head.bias
        self.chunk_tokens, self.scale = chunk_tokens, scale

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """What the layer gives, or with targets the summed cross entropy of those that are not `IGNORED`.

        Args:
            hidden: Last hidden states, shape (rows, length, width).
            targets: int64, shape (rows, length). With `IGNORED` alone the loss is 0, but still a function of every weight: the
                ranks of ZeRO go through every layer together.
        """
        weight, bias = self.weight, self.bias
        if targets is None:
            return functional.linear(hidden, weight, bias)
        supervised = (targets.flatten() != IGNORED).nonzero().flatten()
        hidden, targets = hidden.flatten(0, 1).index_select(0, supervised), targets.flatten()[supervised]
        if not torch.is_grad_enabled():  # autograd.Function would compute gradients of the weight for nobody
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        if self.scale != 1:
            hidden, bias = hidden * self.scale, None if bias is None else bias * self.scale
        return _ChunkedCrossEntropy.apply(hidden, weight, bias, targets, self.chunk_tokens)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes gradients in the forward pass, while a chunk's logits are there; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        chunk_tokens: int,
    ) -> torch.Tensor:
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(tensor) if needed and tensor is not None else None
            for tensor, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        )
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(targets), chunk_tokens):
            tokens = slice(start, start + chunk_tokens)
            target = targets[tokens, None]
            logits = functional.linear(hidden[tokens], weight, bias)
            logarithms = functional.log_softmax(logits, dim=1, dtype=torch.float32)
            del logits
            loss -= logarithms.gather(1, target).sum()
            if of_hidden is None:
                continue
            gradient = logarithms.exp_().scatter_add_(1, target, logarithms.new_full(target.shape, -1)).to(hidden.dtype)
            of_hidden[tokens] = gradient @ weight
            if of_weight is not None:
                of_weight.addmm_(gradient.T, hidden[tokens])
            if of_bias is not None:
                of_bias += gradient.sum(0)
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *scales: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """In place: a weight's gradient may be large, and a second backward pass through the same graph is an error anyway."""
        gradients = [None if gradient is None else gradient.mul_(scales[0]) for gradient in ctx.saved_tensors]
        return (*gradients, None, None)


def _logit_scale(config: Any) -> float:
    """Cohere's models multiply their logits, Granite's divide them; the self-test finds what others may do."""
    return float(getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1))
