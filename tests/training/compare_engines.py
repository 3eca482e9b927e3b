"""Two ranks take steps with DeepSpeed settings of every kind, and compare losses and weights with plain PyTorch in one process."""

from typing import Any

import deepspeed
import pytest
import torch
from torch import distributed

from generation.errors import TrainingError
from tests.training.compare_gradients import make_batches
from training.config import TrainingConfig
from training.engine import start_engine
from training.loss import summed_loss
from training.model import load_model
from training.ranks import Ranks, join_ranks

STEPS, SUPERVISED = 3, 71
CPU_OPTIMIZER = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
CPU_WEIGHTS = {"offload_param": {"device": "cpu", "pin_memory": False}}
SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "stage 0": (0, {}),
    "stage 1": (1, {}),
    "stage 2": (2, {"zero_optimization": {"reduce_bucket_size": 1000}}),
    "stage 3": (3, {}),
    "optimizer offloaded, stage 2": (2, {"zero_optimization": CPU_OPTIMIZER}),
    "optimizer offloaded, stage 3": (3, {"zero_optimization": CPU_OPTIMIZER}),
    "weights and optimizer offloaded": (3, {"zero_optimization": {**CPU_OPTIMIZER, **CPU_WEIGHTS}}),
    "hpZ": (3, {"zero_optimization": {"zero_hpz_partition_size": 2}}),
}


def make_config(stage: int, theirs: dict[str, Any]) -> TrainingConfig:
    values = {"precision": "float32", "zero_stage": stage, "clip_norm": 0.5, "learning_rate": 1e-3, "weight_decay": 0.1}
    return TrainingConfig.model_validate({**values, "deepspeed": theirs})


def plain(folder: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    model = load_model(folder, make_config(0, {}))
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer, losses = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95)), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = sum(summed_loss(model, batch) for batch in make_batches()) / SUPERVISED
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    return losses, dict(model.named_parameters())


def under_deepspeed(folder: str, config: TrainingConfig, ranks: Ranks) -> tuple[list[float], dict[str, torch.Tensor]]:
    engine, losses = start_engine(load_model(folder, config), config, ranks), []
    for _ in range(STEPS):
        total = torch.zeros(())
        for batch in make_batches()[ranks.rank :: 2]:
            loss = summed_loss(engine, batch)
            engine.backward(loss * (2 / SUPERVISED), scale_wrt_gas=False)
            total += loss.detach()
        engine.step()
        distributed.all_reduce(total)
        losses.append(total.item() / SUPERVISED)
    weights = dict(engine.module.named_parameters())
    with deepspeed.zero.GatheredParameters(list(weights.values()), enabled=config.zero_stage == 3):
        return losses, {name: weight.detach().clone() for name, weight in weights.items()}


def main(folder: str) -> None:
    ranks = join_ranks(TrainingConfig())
    expected_losses, expected = plain(folder)
    for name, (stage, theirs) in SETTINGS.items():
        losses, weights = under_deepspeed(folder, make_config(stage, theirs), ranks)
        differences = [abs(loss - other) for loss, other in zip(losses, expected_losses, strict=True)]
        assert max(differences) < 1e-5, f"{name}: losses {losses}, expected {expected_losses}"
        for weight, other in expected.items():
            difference = (weights[weight] - other).abs().mean().item()
            assert difference < 1e-6, f"{name}: {weight} differs by {difference}"
    coarse = {"precision": "bfloat16", "gradient_checkpointing": True}
    rounded = [
        under_deepspeed(folder, make_config(stage, {}).model_copy(update=coarse), ranks)[0] for stage in (1, 2, 3)
    ]
    for losses in rounded:
        assert losses == pytest.approx(expected_losses, rel=0.01), (
            f"bfloat16: losses {rounded}, expected {expected_losses}"
        )
    for theirs in ({"zero_optimization": {"offload_optimiser": {}}}, {"communication_data_type": "8"}):
        config = make_config(1, theirs)
        with pytest.raises(TrainingError, match=r"DeepSpeed refuses training\.deepspeed"):
            start_engine(load_model(folder, config), config, ranks)
