"""The sections of a recipe that measure and bound a run: evaluation, comparison, limits. Data only."""

from typing import Annotated

from pydantic import Field

from generation.config import ArmName, Count, SamplingConfig, Section


class CompareConfig(Section):
    """What `psi compare` does beyond `psi run`."""

    operations = frozenset({"arms", "training_seeds", "headline"})

    arms: tuple[ArmName, ...] = ("base", "direct", "placebo", "psi")
    """Arms that are compared, in addition to `generation.arms`."""
    training_seeds: Count = 3
    """Models that are trained for each headline arm, on the same rows from other training seeds."""
    headline: tuple[ArmName, ...] = ("psi", "direct", "placebo", "small-written", "large")
    """Arms whose contrasts are the claim; the other arms are trained once."""


class EvaluationConfig(Section):
    """Scoring a checkpoint on the evaluation set."""

    max_items: Count | None = None
    sampling: SamplingConfig = SamplingConfig(max_output_tokens=512, temperature=0.0)
    bootstrap_samples: Count = 2000
    oracle: str | None = None
    """`file.py:function` beside the recipe, called with (task name, input): the true answer, for tasks whose truth can be computed.
    Used to report label accuracy, never to choose rows."""


class LimitsConfig(Section):
    """Bounds over all restarts of a run; when one is reached the run drains and can be resumed with a higher one."""

    operations = frozenset({"wall_seconds", "gpu_hours"})

    wall_seconds: Annotated[float, Field(gt=0)] | None = None
    """Of all stages."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Of generation: GPUs of all replicas that the pool has, for as long as a driver generates, ready or not."""
