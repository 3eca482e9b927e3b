"""Bundles and cells: which principles and demonstrations go into a prompt prefix, and what is asked at its end."""

from collections.abc import Sequence
from itertools import product
from typing import Any, TypeVar

from generation.arms import ArmSpec
from generation.config import GenerationConfig
from generation.errors import YieldError
from generation.instances.plan import Bundle, Cell
from generation.principles.model import Principle
from generation.prompts.prompt_set import PromptSet
from generation.storage import digest
from generation.task import Seed, Task

Item = TypeVar("Item")

KIND_ORDER = ("solve", "check", "generate")
"""Order in a draft prompt. Answer prompts hold the first two kinds only, so a principle has the same number in both."""


def make_bundles(
    task: Task, principles: Sequence[Principle], prompts: PromptSet, config: GenerationConfig, arm: ArmSpec
) -> list[Bundle]:
    """The bundles of one task in one arm: at most `config.bundles`, no two alike.

    With principles: all active solve and check principles, which were selected for what they do together, and all of level `task`, are
    in every bundle; the other generate principles rotate, each in two bundles. Without: other demonstrations in each bundle.

    Raises:
        YieldError: The arm works with principles, and the task has no active one.
    """
    if arm.principles == "none":
        seeds = (*task.split("demo"), *task.split("mine"))
        made = [
            _direct_bundle(task, _spread(seeds, b, config.direct_demonstrations), prompts)
            for b in range(config.bundles)
        ]
        return _distinct(made)
    active = [p for p in principles if p.task == task.name and p.status == "active"]
    if not active:
        raise YieldError(
            f"principles: task '{task.name}' has no active principle, so arm '{arm.name}' cannot start; "
            "see `psi show` for why candidates were retired, or name a file in principles.from"
        )
    demonstrations = [_spread(task.split("demo"), b, config.demonstrations) for b in range(config.bundles)]
    return _distinct(
        [
            _psi_bundle(task, _rotated(active, b, config.bundles), shown, prompts)
            for b, shown in enumerate(demonstrations)
        ]
    )


def answer_prefix(task: Task, principles: Sequence[Principle], prompts: PromptSet, demonstrations: int) -> str:
    """The start of an answer prompt as instances have it: the task's active solve and check principles, or, where none is given, examples."""
    mine = [p for p in principles if p.task == task.name and p.status == "active" and p.kind != "generate"]
    shown = () if principles else _spread((*task.split("demo"), *task.split("mine")), 0, demonstrations)
    return prompts.render("answer_prefix", task=task, principles=_in_prompt_order(mine), demonstrations=shown)


def make_cells(bundle: Bundle, task: Task, prompts: PromptSet, config: GenerationConfig) -> tuple[Cell, ...]:
    """The cells of a bundle: each difficulty in each context with each label."""
    cells: list[Cell] = []
    for difficulty, context, label in product(
        config.difficulties or ("",), config.contexts or ("",), task.labels or (None,)
    ):
        text = prompts.render("draft_text", task=task, difficulty=difficulty, context=context, label=label)
        cell_id = digest(bundle.bundle_id, difficulty, context, label or "", text)
        cells.append(Cell(cell_id, text, difficulty, label, context))
    return tuple(cells)


def _psi_bundle(task: Task, principles: list[Principle], shown: tuple[Seed, ...], prompts: PromptSet) -> Bundle:
    solving = [p for p in principles if p.kind != "generate"]
    return _bundle(
        principles,
        prompts.render("draft_prefix", task=task, principles=principles, demonstrations=shown),
        prompts.render("answer_prefix", task=task, principles=solving, demonstrations=()),
    )


def _direct_bundle(task: Task, shown: tuple[Seed, ...], prompts: PromptSet) -> Bundle:
    values: dict[str, Any] = {"task": task, "principles": (), "demonstrations": shown}
    return _bundle([], prompts.render("draft_prefix", **values), prompts.render("answer_prefix", **values))


def _bundle(principles: list[Principle], draft_prefix: str, answer_prefix: str) -> Bundle:
    ids = tuple(p.principle_id for p in principles)
    return Bundle(digest(draft_prefix, answer_prefix), ids, draft_prefix, answer_prefix)


def _rotated(active: list[Principle], number: int, bundles: int) -> list[Principle]:
    """What bundle `number` holds, in prompt order: with 4 rotating principles and 4 bundles, bundle 0 holds the first and the last."""
    rotating = [p for p in active if p.kind == "generate" and p.level != "task"]
    places = max(1, min(bundles, len(rotating)))
    here = {p.principle_id for i, p in enumerate(rotating) if (number - i) % places in (0, 1)}
    moving = {p.principle_id for p in rotating}
    kept = [p for p in active if p.principle_id not in moving or p.principle_id in here]
    return _in_prompt_order(kept)


def _in_prompt_order(principles: list[Principle]) -> list[Principle]:
    return sorted(principles, key=lambda p: (KIND_ORDER.index(p.kind), p.level != "task"))


def _spread(items: tuple[Item, ...], number: int, count: int) -> tuple[Item, ...]:
    """`count` items spread over the whole list, others for each number: 0, 4, 8 of 12 for number 0, then 1, 5, 9."""
    count = min(count, len(items))
    step = len(items) // count if count else 0
    return tuple(items[(number + i * step) % len(items)] for i in range(count))


def _distinct(bundles: list[Bundle]) -> list[Bundle]:
    return list({bundle.bundle_id: bundle for bundle in bundles}.values())
