"""Two ranks compare DeepSpeed's weights after a step of plain gradient descent with those of one process and plain cross entropy."""

from typing import Any

import deepspeed
import torch
from torch.nn import functional

from training.config import TrainingConfig
from training.data import IGNORED, Batch
from training.engine import deepspeed_config
from training.export import gather_weights
from training.loss import summed_loss
from training.model import load_model
from training.ranks import Ranks, join_ranks
from training.self_test import check_model

VOCABULARY, RATE = 126, 0.5


def make_batches() -> list[Batch]:
    """Four micro-batches with 40, 7, 23 and 1 supervised tokens: two for each rank."""
    batches: list[Batch] = []
    for supervised in (40, 7, 23, 1):
        generator = torch.Generator().manual_seed(supervised)
        ids, targets = torch.randint(0, VOCABULARY, (2, 1, 48), generator=generator)
        targets[:, supervised:] = IGNORED
        batches.append(Batch(ids, torch.arange(48)[None], targets))
    return batches


def expected_weights(folder: str, config: TrainingConfig) -> dict[str, torch.Tensor]:
    model, batches = load_model(folder, config), make_batches()
    losses = [
        functional.cross_entropy(model(b.input_ids, b.position_ids).flatten(0, 1), b.targets.flatten(), reduction="sum")
        for b in batches
    ]
    (sum(losses) / 71).backward()
    return {name: (weight - RATE * weight.grad).detach() for name, weight in model.named_parameters()}


def stepped_weights(folder: str, config: TrainingConfig, ranks: Ranks) -> dict[str, torch.Tensor]:
    """The weights after a step; those that rank 0 would publish are the same."""
    model = load_model(folder, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    settings = {**deepspeed_config(config, 2, 10_000), "zero_allow_untested_optimizer": True}
    engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
    check_model(engine.module, config, ranks.device)
    for batch in make_batches()[ranks.rank :: 2]:
        engine.backward(summed_loss(engine, batch) * (2 / 71), scale_wrt_gas=False)
    engine.step()
    names = dict(engine.module.named_parameters())
    with deepspeed.zero.GatheredParameters(list(names.values()), enabled=config.zero_stage == 3):
        weights = {name: weight.detach().clone() for name, weight in names.items()}
    for name, weight in gather_weights(engine, ranks).items():
        head = name == "lm_head.weight" and f"model.{name}" not in weights
        ours = weights["model.model.embed_tokens.weight" if head else f"model.{name}"]
        assert torch.equal(weight, ours.bfloat16()), name
    return weights


def main(tied: str, untied: str) -> None:
    ranks = join_ranks(TrainingConfig())
    deepspeed.ops.__compatible_ops__ = {}  # nothing is compiled
    for folder, names in ((tied, 20), (untied, 21)):
        for stage in (0, 1, 2, 3):
            values = {"precision": "float32", "zero_stage": stage, "clip_norm": None, "loss_chunk_tokens": 6}
            config = TrainingConfig.model_validate(values)
            expected, found = expected_weights(folder, config), stepped_weights(folder, config, ranks)
            assert len(found) == names, sorted(found)
            for name, weight in expected.items():
                message = f"{folder}, stage {stage}, {name}"
                torch.testing.assert_close(
                    found[name], weight, rtol=1e-5, atol=1e-6, msg=lambda text, m=message: f"{m}: {text}"
                )
            assert (
                found["model.model.embed_tokens.weight"] - expected["model.model.embed_tokens.weight"]
            ).abs().max() < 1e-5
