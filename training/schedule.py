"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from training.config import TrainingConfig


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """The learning rate of one optimizer step.

    Args:
        step: From 0.
        steps: Optimizer steps of the whole job.
        config: `learning_rate` is reached after `warmup_steps` and then falls to zero by `schedule`.

    Source:
        The decay of `wsd`, 1 - sqrt, over a fifth of the steps: Haegele et al. 2024, arXiv:2405.18392.
    """
    warmup = min(config.warmup_steps, steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    match config.schedule:
        case "cosine":
            return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return config.learning_rate * (1 - progress)
        case "wsd":
            decay = max(1, round(config.decay_share * steps))
            return config.learning_rate * (1 - math.sqrt(max(0, step - (steps - decay)) / decay))
        case "constant":
            return config.learning_rate
