"""Asks a trained model a few of its tasks' own questions in vLLM before it is published: what was trained is there to be served."""

from collections.abc import Callable
from itertools import islice

from cluster.open_run import OpenRun
from cluster.pools import Pool
from cluster.progress import Counters
from generation.errors import EngineError, GaveUpError, TrainingError
from generation.evaluate import Asked, ItemResult, evaluation_calls
from generation.principles.ask import values_of
from generation.storage import Store
from generation.task import Task
from training.job import LINEAGE, UNCHECKED

MAX_QUESTIONS = 4
"""A good model may ramble on at one question; one that ends no answer has not learnt to."""


def publish_checked(run: OpenRun, name: str, model: Store, serve: Callable[[str], Pool]) -> None:
    """Have an exported model answer in vLLM, and publish it: its lineage gets the name that says so. What is published is left alone.

    Args:
        run: Its tasks, and how they are answered.
        name: What is trained, for people.
        model: The folder of the exported model.
        serve: A pool that serves the model of a folder.

    Raises:
        TrainingError: vLLM cannot load it, or no answer says something and ends; it is not published.
    """
    if model.exists(LINEAGE):
        return
    run.line.show(Counters(f"check {name} in vLLM", 0, noun="answers"))
    try:
        answers = _ask(run, serve(model.uri))
    except (EngineError, GaveUpError) as error:
        raise TrainingError(
            f"{model.uri}: the trained model is not published, for vLLM cannot serve it: {error}"
        ) from error
    if not any(answer.text.strip() and answer.finish == "stop" for answer in answers):
        said = "; ".join(f"{answer.task}: {_described(answer)}" for answer in answers)
        raise TrainingError(
            f"{model.uri}: the trained model is not published, for no answer of it in vLLM says something and ends within "
            f"evaluation.sampling.max_output_tokens = {run.recipe.evaluation.sampling.max_output_tokens} ({said}); look at its loss "
            "in metrics/, and train longer or with another learning rate, or raise that limit, in a new run.output"
        )
    model.write_new(LINEAGE, model.read(UNCHECKED))
    model.delete(UNCHECKED)


def _ask(run: OpenRun, pool: Pool) -> list[ItemResult]:
    """Its answers to a human example of each of the first tasks."""
    asked = [task for task in islice(run.tasks, MAX_QUESTIONS) if task.seeds]
    items = {task.name: task.seeds[:1] for task in asked}
    students = [Asked(Task(task.config, ())) for task in asked]
    return list(values_of(pool.ask(evaluation_calls(students, items, run.prompts, run.recipe.evaluation))).values())


def _described(answer: ItemResult) -> str:
    if not answer.text.strip():
        return "nothing"
    return (
        "an answer that does not end" if answer.finish == "length" else f"an answer that ended with '{answer.finish}'"
    )
