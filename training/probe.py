"""A few numbers that a checkpoint is recognised by: an engine that has loaded it must give them again.

Loading can fail in silence. A universal checkpoint that is loaded wrongly is a model that trains, from a loss that has jumped
(deepspeedai/DeepSpeed#5475).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from training.data import Batch
from training.loss import summed_loss
from training.ranks import Ranks

_TOKENS = 64
_TOLERANCE = 1e-3
"""Relative. Another number of ranks sums in another order: 1e-6 in float32."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What an engine's state amounts to.

    Attributes:
        loss: Cross entropy of fixed tokens, summed, nats: follows from the weights that the next step computes with.
        moments: Norm of the optimizer's moments, over all ranks.
    """

    loss: float
    moments: float

    def matches(self, other: "Probe") -> bool:
        """Whether both are of the same state."""
        pairs = (self.loss, other.loss), (self.moments, other.moments)
        return all(math.isclose(mine, theirs, rel_tol=_TOLERANCE) for mine, theirs in pairs)


def take_probe(engine: Any, ranks: Ranks) -> Probe:
    """Look at an engine between two steps; nothing about it changes. All ranks must call it."""
    ids = (torch.arange(_TOKENS) * 7919 % engine.module.model.get_input_embeddings().num_embeddings)[None]
    batch = Batch(ids, torch.arange(_TOKENS)[None], ids.roll(-1)).to(ranks.device)
    engine.eval()
    with torch.no_grad():
        loss = summed_loss(engine, batch).item()
    engine.train()
    return Probe(loss, _moments(engine, ranks))


def _moments(engine: Any, ranks: Ranks) -> float:
    squares = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for state in engine.basic_optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            squares += state[name].to(ranks.device).double().square().sum() if name in state else 0
    distributed.all_reduce(squares)
    copies = 1 if engine.zero_optimization_stage() else ranks.world
    return math.sqrt(squares.item() / copies)
