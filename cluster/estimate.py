"""What a run will take, from the recipe and the lengths of the seeds. Every assumption is a named constant here."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from cluster.recipe import Recipe
from generation.arms import arm_spec
from generation.config import SamplingConfig
from generation.engines.config import VllmEngine
from generation.task import Task

CHARS_PER_TOKEN = 4.0
ASSUMED_YIELD = 0.5
"""Accepted share of the flows."""
ASSUMED_ROUND = 1
"""Votes are settled after the second round, on average."""
TEMPLATE_TOKENS = 150
"""Of a prompt, beside principles and input."""
UNKNOWN_ANSWER_SHARE = 0.25
"""Of `max_output_tokens`, where the seeds show no way to the answer."""
ROW_OVERHEAD_BYTES = 400
"""Ids, votes and counts of a row."""


@dataclass(frozen=True, slots=True)
class Work:
    """What generation and training of all arms will take.

    Attributes:
        rows: Accepted rows, over tasks and arms.
        flows: Instances begun.
        requests: Of the small model.
        prompt_tokens: Of these requests; bundles make most of them cached.
        generated_tokens: By these requests.
        storage_bytes: Rows and dataset.
        train_tokens: Per arm, over all epochs.
        train_steps: Per arm.
    """

    rows: int
    flows: int
    requests: int
    prompt_tokens: int
    generated_tokens: int
    storage_bytes: int
    train_tokens: int
    train_steps: int


def estimate(recipe: Recipe, tasks: Sequence[Task]) -> Work:
    """Sum over tasks and arms."""
    generation, training = recipe.generation, recipe.training
    arms = [arm for arm in generation.arms if arm_spec(arm).writes]
    rounds = sorted(generation.voting.rounds)
    votes = rounds[min(ASSUMED_ROUND, len(rounds) - 1)]
    flows_per_task = round(generation.accepted_rows / ASSUMED_YIELD) * len(arms)
    prompt_tokens = generated_tokens = stored = train_tokens = 0.0
    for task in tasks:
        inputs = _tokens([seed.input for seed in task.seeds])
        answers = _answer_tokens(task, generation.answer)
        prefix = _prefix_tokens(recipe)
        prompt_tokens += flows_per_task * (prefix + votes * (prefix + inputs))
        generated_tokens += flows_per_task * (inputs + votes * answers)
        row_bytes = CHARS_PER_TOKEN * (inputs + answers) + ROW_OVERHEAD_BYTES
        stored += row_bytes * (flows_per_task + generation.accepted_rows * len(arms))
        train_tokens += generation.accepted_rows * (inputs + answers + _tokens([task.description]))
    steps = round(train_tokens * training.epochs / (training.max_tokens * training.rows_per_step)) + 1
    return Work(
        rows=generation.accepted_rows * len(arms) * len(tasks),
        flows=flows_per_task * len(tasks),
        requests=flows_per_task * len(tasks) * (1 + votes),
        prompt_tokens=round(prompt_tokens),
        generated_tokens=round(generated_tokens),
        storage_bytes=round(stored),
        train_tokens=round(train_tokens * training.epochs),
        train_steps=min(steps, training.max_steps or steps),
    )


def _prefix_tokens(recipe: Recipe) -> float:
    tokens = recipe.principles.prefix_token_budget + TEMPLATE_TOKENS
    engine = recipe.pools.small.engine
    return min(tokens, engine.max_model_len / 2) if isinstance(engine, VllmEngine) else tokens


def _tokens(texts: Sequence[str]) -> float:
    return fmean(len(text) for text in texts) / CHARS_PER_TOKEN


def _answer_tokens(task: Task, sampling: SamplingConfig) -> float:
    if any(seed.rationale for seed in task.seeds):
        return min(_tokens([seed.rationale + seed.output for seed in task.seeds]), sampling.max_output_tokens)
    return sampling.max_output_tokens * UNKNOWN_ANSWER_SHARE
