"""What no single section can check: files that must exist, and sections that must fit each other."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generation.arms import arm_spec
from generation.config import TaskConfig
from generation.engines.config import HttpEngine, PoolConfig, VllmEngine
from generation.engines.model_facts import context_tokens
from generation.engines.privacy import require_allowed
from generation.errors import PrivacyError, RecipeError
from generation.instances.round_trip import TEMPLATE as ROUND_TRIP
from generation.prompts.prompt_set import DEFAULT_SET, PromptSet, load_prompt_set
from generation.uris import without_credentials

if TYPE_CHECKING:
    from cluster.recipe import Recipe

NEEDED_TEMPLATES = ("draft_prefix", "draft_text", "answer_prefix", "answer_text", "student", "student_answer")
NEEDED_PATTERNS = ("input", "answer")
READ_BY = {"cause": "cause", "rewrite_group": "principle", "contradict": "verdict"}
"""Optional templates of the large model to the patterns that read its answers."""


def resolve_paths(recipe: Recipe, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The recipe's values with absolute paths, and the paths that lead nowhere.

    Data, prompts and models are relative to the recipe, outputs to where the command is started. A model that is no folder is a hub
    id, unless it is written like a path.
    """
    values = recipe.model_dump()
    mistakes: list[str] = []
    _resolve_run(values["run"], mistakes)
    if recipe.prompts != DEFAULT_SET:
        values["prompts"] = str(folder / recipe.prompts)
    for index, task in enumerate(values["tasks"]):
        for key in ("seeds", "evaluation"):
            task[key] = _existing(folder, task[key], f"tasks.{index}.{key}", mistakes)
        task["verifier"] = _program(folder, task["verifier"], f"tasks.{index}.verifier", mistakes)
    principles = values["principles"]
    principles["from_file"] = _existing(folder, principles["from_file"], "principles.from", mistakes)
    for name, pool in values["pools"].items():
        if pool and pool["engine"]["kind"] == "vllm":
            pool["engine"]["model"] = _model(folder, pool["engine"]["model"], name, mistakes)
    return values, mistakes


def find_mistakes(recipe: Recipe, folder: Path) -> tuple[list[str], list[str]]:
    """(mistakes, private tasks that would leave the allowed machines) of a recipe with absolute paths."""
    mistakes = [
        *_task_mistakes(recipe),
        *_principle_mistakes(recipe),
        *_prompt_mistakes(recipe, folder),
        *_length_mistakes(recipe),
        *_oracle_mistakes(recipe, folder),
    ]
    pools = {"large": recipe.pools.large, "small": recipe.pools.small}
    engines = {f"pools.{name}.engine.url": pool.engine for name, pool in pools.items() if pool}
    urls = {key: engine.url for key, engine in engines.items() if isinstance(engine, HttpEngine)}
    if recipe.training.wandb_project is not None:
        urls["training.wandb_url"] = recipe.training.wandb_url
    return mistakes, [leak for key, url in urls.items() for leak in _leaks(key, url, recipe.tasks)]


def _resolve_run(run: dict[str, Any], mistakes: list[str]) -> None:
    output = run["output"] = _absolute(run["output"] or f"runs/{run['name']}")
    shown, scratch = without_credentials(output), run["scratch"]
    if shown != output:
        mistakes.append(f"run.output: {shown} holds credentials; name them in the environment, in ~/.aws, or by a role")
    if "://" in (scratch or output):
        mistakes.append(
            f"run.scratch: {without_credentials(scratch or 'is missing')}; name a local folder for temporary files beside {shown}"
        )
    run["scratch"] = _absolute(scratch or f"{output.rstrip('/')}/scratch")


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).absolute())


def _existing(folder: Path, path: str | None, key: str, mistakes: list[str]) -> str | None:
    if path is None:
        return None
    if not path:
        mistakes.append(f"{key}: is empty; name a file or leave the key out")
    elif not (folder / path).exists():
        mistakes.append(f"{key}: {path} does not exist in {folder}; correct the path")
    return str(folder / path)


def _program(folder: Path, spec: str | None, key: str, mistakes: list[str]) -> str | None:
    if spec is None:
        return None
    file, _, function = spec.rpartition(":")
    if not function.isidentifier() or not (folder / file).is_file():
        mistakes.append(f"{key}: {spec} is not file.py:function with a file in {folder}; correct it")
    return f"{folder / file}:{function}"


def _model(folder: Path, model: str, pool: str, mistakes: list[str]) -> str:
    key = f"pools.{pool}.engine.model"
    place = folder / model
    if place.is_dir():
        if not (place / "config.json").is_file():
            mistakes.append(f"{key}: {place} holds no config.json; name a Hugging Face model folder")
        return str(place)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        mistakes.append(f"{key}: {model} does not exist in {folder}; name a model folder or a hub id (owner/name)")
    return model


def _task_mistakes(recipe: Recipe) -> list[str]:
    mistakes = [] if recipe.tasks else ["tasks: there is none; add a [[tasks]] section"]
    if recipe.generation.target_per == "label" and not any(task.answer.labels for task in recipe.tasks):
        mistakes.append("generation.target_per: 'label' divides the rows by label, and no task has answer.labels")
    names = [task.name for task in recipe.tasks]
    for index, task in enumerate(recipe.tasks):
        key = f"tasks.{index}"
        if names.index(task.name) < index:
            mistakes.append(f"{key}.name: {task.name} is the name of an earlier task; give each its own")
        if len({label.casefold() for label in task.answer.labels}) < len(task.answer.labels):
            mistakes.append(f"{key}.answer.labels: two labels are equal but for case; rename one of them")
        patterns = {"answer.pattern": task.answer.pattern, "fields.answer_pattern": task.fields.answer_pattern}
        mistakes += [f"{key}.{name}: {wrong}" for name, text in patterns.items() if text and (wrong := _regex(text))]
    return mistakes


def _regex(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return f"{pattern!r} is no regular expression: {error}; correct it"
    return None


def _principle_mistakes(recipe: Recipe) -> list[str]:
    mistakes = [
        f"generation.arms: {spec.name} leaves out level '{spec.minus_level}', which principles.levels does not have"
        for spec in map(arm_spec, recipe.generation.arms)
        if spec.minus_level and spec.minus_level not in recipe.principles.levels
    ]
    if recipe.needs_large and not recipe.pools.large:
        mistakes.append(
            "pools.large: is missing, and an arm needs it, to find principles or to write rows; add a large model, or name a file of "
            "principles in principles.from, or leave psi (or large) out of generation.arms"
        )
    return mistakes


def _prompt_mistakes(recipe: Recipe, folder: Path) -> list[str]:
    try:
        prompts = load_prompt_set(recipe.prompts, folder)
        missing = [
            f"prompts: patterns.toml has no '{name}'" for name in NEEDED_PATTERNS if not prompts.has_pattern(name)
        ]
    except RecipeError as error:
        return [str(error)]
    missing += [f"prompts: {name}.jinja is missing" for name in NEEDED_TEMPLATES if not _has(prompts, name)]
    if recipe.generation.round_trip and not _has(prompts, ROUND_TRIP):
        missing.append(
            f"generation.round_trip: the prompt set has no {ROUND_TRIP}.jinja; write it or leave the check out"
        )
    if not recipe.principles.from_file:
        missing += [
            f"principles.levels.{level}.prompt: the prompt set has no {config.prompt}.jinja; write it or leave the level out"
            for level, config in recipe.principles.levels.items()
            if not _has(prompts, config.prompt)
        ]
        missing += [
            f"prompts: patterns.toml has no '{pattern}', which reads what {template}.jinja asks for; write it or leave the template out"
            for template, pattern in READ_BY.items()
            if _has(prompts, template) and not prompts.has_pattern(pattern)
        ]
    return missing


def _has(prompts: PromptSet, template: str) -> bool:
    return (Path(prompts.folder) / f"{template}.jinja").is_file()


def _length_mistakes(recipe: Recipe) -> list[str]:
    generation, rounds = recipe.generation, recipe.generation.voting.rounds
    mistakes: list[str] = []
    if not rounds or any(later <= earlier for earlier, later in itertools.pairwise(rounds)):
        mistakes.append(f"generation.voting.rounds: {list(rounds)} must grow, such as [2, 4, 8]")
    large = recipe.pools.large if recipe.needs_large else None
    for name, pool in {"large": large, "small": recipe.pools.small}.items():
        mistakes += [*_context_mistakes(name, pool), *_gpu_mistakes(name, pool)] if pool else []
    used = {
        "generation.draft": (recipe.pools.small, generation.draft),
        "generation.answer": (recipe.pools.small, generation.answer),
        "evaluation.sampling": (recipe.pools.small, recipe.evaluation.sampling),
        "principles.sampling": (large, recipe.principles.sampling),
    }
    for key, (pool, sampling) in used.items():
        if pool and isinstance(pool.engine, VllmEngine) and sampling.max_output_tokens >= pool.engine.max_model_len:
            mistakes.append(
                f"{key}.max_output_tokens: {sampling.max_output_tokens} leaves no room for a prompt in the engine's "
                f"max_model_len of {pool.engine.max_model_len}; lower it"
            )
    return mistakes


def _context_mistakes(name: str, pool: PoolConfig) -> list[str]:
    engine = pool.engine
    longest = context_tokens(engine.model) if isinstance(engine, VllmEngine) else None
    if not isinstance(engine, VllmEngine) or longest is None or engine.max_model_len <= longest:
        return []
    return [
        f"pools.{name}.engine.max_model_len: {engine.max_model_len} is more than the {longest} tokens that the model "
        "was made for; lower it"
    ]


def _gpu_mistakes(name: str, pool: PoolConfig) -> list[str]:
    engine, key = pool.engine, f"pools.{name}.gpus"
    if pool.gpus > 1 and pool.gpus % 1:
        return [f"{key}: {pool.gpus:g} is neither a whole number of GPUs nor a part of one; correct it"]
    if not isinstance(engine, VllmEngine) or not pool.gpus:
        return []
    wanted = engine.tensor_parallel * engine.pipeline_parallel
    if max(pool.gpus, 1) == wanted:
        return []
    return [
        f"{key}: is {pool.gpus:g}, but tensor_parallel x pipeline_parallel of the engine is {wanted}; set it to {wanted}"
    ]


def _oracle_mistakes(recipe: Recipe, folder: Path) -> list[str]:
    oracle = recipe.evaluation.oracle
    if oracle is None:
        return []
    file, _, function = oracle.partition(":")
    if not function or not (folder / file).is_file():
        return [f"evaluation.oracle: {oracle} is not file.py:function with a file in {folder}; correct it"]
    return []


def _leaks(key: str, url: str, tasks: tuple[TaskConfig, ...]) -> list[str]:
    leaks: list[str] = []
    for task in tasks:
        try:
            require_allowed(url, task)
        except PrivacyError as error:
            leaks.append(f"{key}: {error}")
    return leaks
