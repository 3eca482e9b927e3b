"""The miniature's generation stage: its tasks, prompts, screens and small model."""

from pathlib import Path

from benchmarks.support.stage import Kind, Stage
from cluster.recipe import load_recipe, load_tasks
from generation.arms import arm_spec
from generation.curation.decontaminate import EvaluationIndex
from generation.engines.config import VllmEngine
from generation.instances.bundles import make_bundles, make_cells
from generation.instances.flow import InstanceContext, without_seeds
from generation.instances.screen import make_screen
from generation.principles.model import Principle
from generation.prompts.prompt_set import load_prompt_set
from generation.seeds import load_evaluation
from generation.task import Task
from recipes.miniature.world import TASKS

_RECIPE = Path(__file__).parents[2] / "recipes/miniature/recipe.toml"


def miniature_stage(arm: str = "psi") -> tuple[VllmEngine, Stage]:
    """The small model's engine section, and the units of an arm over all tasks."""
    loaded = load_recipe(_RECIPE)
    recipe, engine = loaded.recipe, loaded.recipe.pools.small.engine
    assert isinstance(engine, VllmEngine)
    generation, curation = recipe.generation, recipe.curation
    prompts, tasks = load_prompt_set(recipe.prompts, loaded.folder), load_tasks(loaded)
    bundles = {task.name: make_bundles(task, _principles(task), prompts, generation, arm_spec(arm)) for task in tasks}
    held_out = [tuple(seed.input for seed in load_evaluation(task.config)) for task in tasks]
    index = EvaluationIndex(held_out, curation.decontaminate_ngram)
    screens = {
        task.name: make_screen(task, bundles[task.name], index, curation, generation.demo_leak) for task in tasks
    }
    named = {task.name: without_seeds(task) for task in tasks}
    kinds = [
        Kind(task.name, bundle, make_cells(bundle, task, prompts, generation))
        for task in tasks
        for bundle in bundles[task.name]
    ]
    context = InstanceContext("benchmark", named, prompts, generation, "model", screens)
    return engine, Stage(context, kinds, generation.flows_per_unit)


def _principles(task: Task) -> list[Principle]:
    """What the large model finds: the rule of a task, and a range of lengths."""
    rule, lengths = "; ".join(TASKS[task.name]), "len 4-6"
    return [
        Principle(f"{task.name}-rule", task.name, "task", "solve", rule, status="active"),
        Principle(f"{task.name}-lengths", task.name, "instance", "generate", lengths, status="active"),
    ]
