"""Builds the DeepSpeed engine. Which settings are ours and which are the user's is decided here."""

from typing import Any, cast

import torch

from generation.errors import TrainingError
from training.config import REDUCE_BUCKET, TrainingConfig
from training.ranks import Ranks

_BETAS = (0.9, 0.95)


def start_engine(model: Any, config: TrainingConfig, ranks: Ranks) -> Any:
    """Wrap a model into a DeepSpeed engine with its optimizer.

    Raises:
        TrainingError: DeepSpeed refuses the user's keys.
    """
    import deepspeed

    if ranks.device.type == "cpu":
        # Without this DeepSpeed compiles a shared-memory collective at every first start, and crashes where there is no compiler.
        cast(Any, deepspeed.ops).__compatible_ops__ = {}
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    settings = deepspeed_config(config, ranks.world, trained)
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=_make_optimizer(model, config), config=settings)
    except (ValueError, AssertionError) as error:
        raise TrainingError(f"DeepSpeed refuses training.deepspeed = {config.deepspeed}: {error}") from error
    return engine


def _make_optimizer(model: Any, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW in one kernel, on a GPU as on a CPU; DeepSpeed's own for the CPU, which it compiles, where the user insists on that."""
    groups = _parameter_groups(model, config)
    if config.deepspeed.get("zero_force_ds_cpu_optimizer"):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, lr=config.learning_rate, betas=_BETAS)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=_BETAS, fused=True)


def deepspeed_config(config: TrainingConfig, world: int, trained: int) -> dict[str, Any]:
    """The whole DeepSpeed JSON: the user's keys, and ours, which `TrainingConfig` keeps apart.

    Gradients are summed over micro-batches until `step`, so that the number of micro-batches does not scale them.

    Args:
        config: Of the job.
        world: Number of ranks.
        trained: Numbers that are trained: DeepSpeed allocates its whole bucket, 2 GB in float32, for a few adapters too.
    """
    theirs = config.deepspeed
    zero = {"reduce_bucket_size": min(REDUCE_BUCKET, trained), **theirs.get("zero_optimization", {})}
    ours: dict[str, Any] = {
        "train_batch_size": config.rows_per_micro_batch * world,
        "train_micro_batch_size_per_gpu": config.rows_per_micro_batch,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.clip_norm or 0.0,
        "bf16": {"enabled": config.precision == "bfloat16"},
        "zero_optimization": {**zero, "stage": config.zero_stage, "overlap_comm": False},
    }
    defaults = {"steps_per_print": 2**31, "zero_force_ds_cpu_optimizer": False}
    return {**defaults, **theirs, **ours}


def set_learning_rate(engine: Any, value: float) -> None:
    """The learning rate of the next optimizer step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def _parameter_groups(model: Any, config: TrainingConfig) -> list[dict[str, Any]]:
    """Weight decay is for matrices; norms and biases have none."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
