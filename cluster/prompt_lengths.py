"""Which prompts of a recipe its engines will refuse, for models whose tokenizer lies here. Loads no model."""

from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.recipe import LoadedRecipe, Recipe
from generation.arms import arm_spec
from generation.config import SamplingConfig
from generation.engines.config import PoolConfig, VllmEngine
from generation.instances.bundles import make_bundles, make_cells
from generation.principles.mine import mining_calls
from generation.principles.model import Principle
from generation.prompts.prompt_set import PromptSet, load_prompt_set
from generation.task import Task


def prompts_too_long(loaded: LoadedRecipe, tasks: Sequence[Task], principles: Sequence[Principle]) -> list[str]:
    """A warning for each kind of prompt that leaves too little of the context; a chat template comes on top.

    Args:
        loaded: The recipe.
        tasks: Its tasks.
        principles: Those of `principles.from`. Without them, psi prompts are measured without principles.
    """
    recipe, prompts = loaded.recipe, load_prompt_set(loaded.recipe.prompts, loaded.folder)
    found: list[str] = []
    for task in tasks:
        found += _of_arms(recipe, task, prompts, principles)
        found += _of_levels(recipe, task, prompts) if recipe.needs_large else []
    return found


def _of_arms(recipe: Recipe, task: Task, prompts: PromptSet, principles: Sequence[Principle]) -> list[str]:
    generation, longest = recipe.generation, max(task.seeds, key=lambda seed: len(seed.input)).input
    question = prompts.render("answer_text", task=task, input=longest)
    found: list[str] = []
    for arm in [spec for spec in map(arm_spec, generation.arms) if spec.writes]:
        pool = recipe.pools.large if arm.writer == "large" else recipe.pools.small
        shown = principles or [_stand_in(task)]
        bundles = make_bundles(task, shown, prompts, generation, arm)
        drafts = [
            bundle.draft_prefix + make_cells(bundle, task, prompts, generation)[0].draft_text for bundle in bundles
        ]
        answers = [bundle.answer_prefix + question for bundle in bundles]
        for name, texts, sampling in (("draft", drafts, generation.draft), ("answer", answers, generation.answer)):
            what = f"task {task.name}: the longest {name} prompt of arm {arm.name}"
            found += _warning(what, f"generation.{name}", texts, sampling, pool or recipe.pools.small)
    return found


def _stand_in(task: Task) -> Principle:
    return Principle("", task.name, "task", "solve", "...", status="active")


def _of_levels(recipe: Recipe, task: Task, prompts: PromptSet) -> list[str]:
    config, large = recipe.principles, recipe.pools.large
    calls = mining_calls(task, config, prompts, (), recipe.run.seed)
    found: list[str] = []
    for level in config.levels:
        texts = [call.call.arguments[0].text for call in calls if call.level == level]
        what = f"task {task.name}: the longest prompt of level {level}"
        found += _warning(what, "principles.sampling", texts, config.sampling, large) if large else []
    return found


def _warning(what: str, key: str, texts: Sequence[str], sampling: SamplingConfig, pool: PoolConfig) -> list[str]:
    count = _counter(pool)
    if count is None or not isinstance(pool.engine, VllmEngine) or not texts:
        return []
    tokens, wanted, longest = max(map(count, texts)), sampling.max_output_tokens, pool.engine.max_model_len
    if tokens + wanted <= longest:
        return []
    return [
        f"{what} has {tokens:,} tokens; with {key}.max_output_tokens = {wanted} that is more than "
        f"max_model_len = {longest}, so the engine will refuse it"
    ]


def _counter(pool: PoolConfig) -> Callable[[str], int] | None:
    file = Path(pool.engine.model) / "tokenizer.json" if isinstance(pool.engine, VllmEngine) else None
    if file is None or not file.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))
