"""`psi check`: everything that can be known of a recipe without a GPU, in one block of text."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cluster.estimate import ASSUMED_YIELD, Work, estimate
from cluster.prompt_lengths import prompts_too_long
from cluster.recipe import LoadedRecipe, Recipe, load_recipe, load_tasks
from cluster.training_memory import activation_bytes, model_shape, training_memory
from generation.engines.config import PoolConfig, VllmEngine
from generation.engines.device import H100, H200, this_machine
from generation.engines.model_facts import ModelFacts, model_facts
from generation.engines.presets import EngineSettings, choose_settings
from generation.errors import RecipeError
from generation.principles.model import Principle, load_principles
from generation.seeds import load_evaluation
from generation.task import Task

WIDTH = 80
MAX_LABELS_SHOWN = 8
MIN_SEEDS = 12
"""With fewer, a principle is tried on no more than two or three examples."""
REFERENCE_TOKENS_PER_SECOND = 1000
ADAPTER_LEARNING_RATE = 5e-5
"""With less, adapters are likely to be trained at the rate of a whole model."""
_KEY = 14


def check_recipe(path: Path, overrides: Sequence[str]) -> str:
    """Check recipe, data and models; returns what to print.

    Raises:
        RecipeError: There are mistakes; the message lists all that can be seen.
    """
    loaded = load_recipe(path, overrides)
    problems: list[str] = []
    tasks: list[Task] = []
    try:
        tasks = load_tasks(loaded)
    except RecipeError as error:
        problems.append(str(error))
    principles: list[Principle] = []
    principles_file = loaded.recipe.principles.from_file
    if principles_file:
        try:
            principles = load_principles(
                principles_file, [task.name for task in loaded.recipe.tasks], list(loaded.recipe.principles.levels)
            )
        except RecipeError as error:
            problems.append(str(error))
    models = _models(loaded.recipe, problems)
    if problems:
        raise RecipeError("\n".join(problems))
    return _block(path, loaded, tasks, models, prompts_too_long(loaded, tasks, principles))


def _pools(recipe: Recipe) -> dict[str, PoolConfig]:
    """The pools that the run starts."""
    pools = {"large": recipe.pools.large if recipe.needs_large else None, "small": recipe.pools.small}
    return {name: pool for name, pool in pools.items() if pool}


def _models(recipe: Recipe, problems: list[str]) -> dict[str, ModelFacts]:
    models: dict[str, ModelFacts] = {}
    for name, pool in _pools(recipe).items():
        if not isinstance(pool.engine, VllmEngine):
            continue
        try:
            facts = model_facts(pool.engine)
        except RecipeError as error:
            problems.append(f"pools.{name}.engine.model: {error}")
            continue
        models[name] = facts
    return models


def _block(
    path: Path, loaded: LoadedRecipe, tasks: Sequence[Task], models: dict[str, ModelFacts], too_long: Sequence[str]
) -> str:
    recipe = loaded.recipe
    lines = [f"{path}: no mistakes", "", "tasks"]
    for task in tasks:
        lines += _task_lines(task)
    lines += ["", "models"]
    for name, pool in _pools(recipe).items():
        lines += _model_lines(name, pool, models.get(name))
    if recipe.principles.from_file:
        lines += _line("principles", f"from {recipe.principles.from_file}, so no large model is started")
    lines += ["", f"work (assuming that {ASSUMED_YIELD:.0%} of what is written is accepted)"]
    lines += _work_lines(recipe, estimate(recipe, tasks), models.get("small"))
    warnings = [*too_long, *_warnings(recipe, tasks, models)]
    lines += ["", "warnings"] if warnings else []
    for warning in warnings:
        lines += textwrap.wrap(warning, WIDTH, initial_indent="  ! ", subsequent_indent="    ")
    return "\n".join([*lines, "", *_line("run folder", recipe.run.output, indent=0)])


def _line(key: str, text: str, indent: int = 2) -> list[str]:
    head = " " * indent + f"{key:<{_KEY}}"
    return textwrap.wrap(
        text, WIDTH, initial_indent=head, subsequent_indent=" " * max(len(head), indent + _KEY),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _task_lines(task: Task) -> list[str]:
    splits = ", ".join(f"{len(task.split(name))} {name}" for name in ("mine", "validate", "demo"))
    evaluation = len(load_evaluation(task.config))
    held_out = f"{evaluation} rows for evaluation" if evaluation else "no evaluation rows"
    kind = task.config.answer.kind
    lines = _line(task.name, f"{len(task.seeds)} seeds ({splits}), {held_out}, {kind} answers, {task.config.privacy}")
    if task.labels:
        counts = Counter(seed.output for seed in task.seeds)
        shown = ", ".join(f"{label} {counts[label]}" for label in task.labels[:MAX_LABELS_SHOWN])
        more = len(task.labels) - MAX_LABELS_SHOWN
        lines += _line("", f"labels: {shown}" + (f" and {more} more" if more > 0 else ""))
    return lines


def _model_lines(name: str, pool: PoolConfig, facts: ModelFacts | None) -> list[str]:
    engine = pool.engine
    replicas = "1 replica" if pool.replicas == 1 else f"{pool.replicas} replicas"
    if not isinstance(engine, VllmEngine) or facts is None:
        return _line(name, f"{engine.kind} engine, {replicas}")
    place = Path(engine.model).name if Path(engine.model).is_dir() else engine.model
    parameters = f"{human(facts.parameters)} parameters" if facts.parameters else "size not known here"
    by_name = "" if facts.exact or not facts.parameters else " by its name"
    lines = _line(name, f"{place}, {parameters}{by_name}, {replicas}")
    devices = (H100, H200) if pool.gpus else (this_machine(),)
    chosen = [choose_settings(engine, facts, device, pool.replicas_per_gpu) for device in devices]
    for text in dict.fromkeys(_settings(engine, facts, settings) for settings in chosen):
        lines += _line("", text)
    if facts.weight_bytes:
        lines += _line("", f"weights {human(facts.weight_bytes, 'B')} per replica")
    return lines


def _settings(engine: VllmEngine, facts: ModelFacts, chosen: EngineSettings) -> str:
    cache, per_token = chosen.kv_cache_bytes, facts.kv_bytes_per_token
    held = f"what is left of {chosen.memory_share:.0%} of it" if cache is None else human(cache, "B")
    tokens = f" ({human(cache // per_token)} tokens)" if cache and per_token else ""
    own = (engine.max_num_seqs, engine.max_num_batched_tokens)
    by = "the recipe" if all(own) else chosen.why if not any(own) else f"the recipe, {chosen.why}"
    return (
        f"{chosen.max_num_seqs} sequences at once, {chosen.max_num_batched_tokens:,} tokens a step (by {by}); "
        f"KV cache {held}{tokens}"
    )


def _work_lines(recipe: Recipe, work: Work, small: ModelFacts | None) -> list[str]:
    training = recipe.training
    if not work.rows:
        return _line("generation", "none: only the base arm is asked for")
    hours = work.generated_tokens / REFERENCE_TOKENS_PER_SECOND / 3600
    time = f"{hours:.1f} hours" if hours >= 1 else f"{max(1, round(hours * 60))} min"
    lines = [
        *_line("generation", f"{work.rows:,} rows, ~{human(work.flows)} flows, ~{human(work.requests)} requests"),
        *_line("tokens", f"~{human(work.prompt_tokens)} prompt (most of them cached), "
                         f"~{human(work.generated_tokens)} generated"),
        *_line("time", f"~{time} for each {REFERENCE_TOKENS_PER_SECOND:,} tokens/s that all replicas generate together"),
        *_line("storage", f"~{human(work.storage_bytes, 'B')}"),
        *_line("training", f"~{human(work.train_tokens)} tokens, ~{work.train_steps:,} steps per arm, "
                           f"{training.ranks} {'rank' if training.ranks == 1 else 'ranks'}"),
    ]  # fmt: skip
    if small and small.parameters:
        lines += _line("", _memory_text(recipe, small.parameters))
    if recipe.needs_large:
        lines += _line("large model", f"at most {human(recipe.principles.large_token_budget)} tokens, once")
    return lines


def _memory_text(recipe: Recipe, parameters: int) -> str:
    training, engine = recipe.training, recipe.pools.small.engine
    shape = model_shape(engine.model) if isinstance(engine, VllmEngine) else None
    held = training_memory(training, parameters, shape)
    names = ("weights", "gradients", "optimizer", "buffers", "logits", "activations")
    parts = [f"{name} {human(getattr(held, name), 'B')}" for name in names if getattr(held, name)]
    text = f"memory per rank: ~{human(held.device, 'B')} ({', '.join(parts)}; ZeRO stage {training.zero_stage})"
    if held.host:
        text += f", and {human(held.host, 'B')} of the host's"
    if shape is None:
        return f"{text}, and activations"
    other = training.model_copy(update={"gradient_checkpointing": not training.gradient_checkpointing})
    instead = human(activation_bytes(other, shape), "B")
    return (
        f"{text}; activations {'with' if other.gradient_checkpointing else 'without'} gradient checkpointing: {instead}"
    )


def _warnings(recipe: Recipe, tasks: Sequence[Task], models: dict[str, ModelFacts]) -> list[str]:
    found: list[str] = []
    for task in tasks:
        key = f"task {task.name}"
        if task.config.evaluation is None:
            found.append(f"{key}: no evaluation file, so its accuracy will be 'not measured'")
        if len(task.seeds) < MIN_SEEDS:
            found.append(f"{key}: {len(task.seeds)} seeds are few; from {MIN_SEEDS} on, principles can be tried out")
        unseen = set(task.labels) - {seed.output for seed in task.seeds}
        if unseen:
            found.append(f"{key}: no seed has the label {', '.join(sorted(unseen))}")
        too_long = sum(len(seed.input) > recipe.curation.max_input_chars for seed in task.seeds)
        if too_long:
            found.append(
                f"{key}: {too_long} seeds are longer than curation.max_input_chars; rows like them are dropped"
            )
    for name, pool in _pools(recipe).items():
        found += _pool_warnings(name, pool, name in models and models[name].exact)
    found += _training_warnings(recipe)
    return found


def _training_warnings(recipe: Recipe) -> list[str]:
    found: list[str] = []
    if recipe.training.lora and recipe.training.learning_rate < ADAPTER_LEARNING_RATE:
        found.append(
            f"training.learning_rate: {recipe.training.learning_rate:g} is little for adapters; they learn well with ten times what a "
            "whole model takes, from 1e-4 on"
        )
    if not isinstance(recipe.pools.small.engine, VllmEngine):
        found.append("pools.small: its weights are not here, so generation is possible, training is not")
    return found


def _pool_warnings(name: str, pool: PoolConfig, is_here: bool) -> list[str]:
    engine = pool.engine
    if not isinstance(engine, VllmEngine):
        return []
    found: list[str] = []
    if not is_here:
        found.append(
            f"pools.{name}: {engine.model} is no folder here; it is fetched from the hub when it is first used"
        )
    if not pool.gpus and not engine.kv_cache_bytes:
        found.append(f"pools.{name}: gpus = 0 and no engine.kv_cache_bytes; on CPU always set it")
    if engine.trust_remote_code:
        found.append(f"pools.{name}: trust_remote_code runs code that comes with the model")
    return found


def human(count: int, unit: str = "") -> str:
    """`1.3 M`, `4.8 GB`: three digits at most, decimal prefixes."""
    value, prefixes = float(count), ["", "k", "M", "G" if unit else "B", "T"]
    place = 0
    while value >= 999.5 and place < len(prefixes) - 1:
        value, place = value / 1000, place + 1
    digits = f"{value:.0f}" if place == 0 or value >= 99.5 else f"{value:.1f}"
    return f"{digits} {prefixes[place]}{unit}".rstrip()
