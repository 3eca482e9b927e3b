"""What each arm answered on the evaluation set, brought together only where all answered the same items."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.report_files import read_metrics, read_object
from generation.bootstrap import Rights
from generation.storage import Store


@dataclass(frozen=True, slots=True)
class _Seed:
    """What one trained model answered: (task, input, gold answer) of each item, and whether it was right."""

    items: list[tuple[str, str, str]]
    rights: list[bool]


@dataclass(frozen=True, slots=True)
class Answered:
    """Results of the arms that can be compared, and why the others cannot.

    Attributes:
        rights: Results by arm.
        why_not: The reason, by arm.
    """

    rights: dict[str, Rights]
    why_not: dict[str, str]


def read_answers(run: Store, arms: Sequence[str], reference: str) -> Answered:
    """The items of all arms.

    Args:
        run: The run folder.
        arms: Arm names.
        reference: The arm whose items the others must have answered; where it has none, the first one that has.
    """
    found = {arm: _seeds(run, arm) for arm in arms}
    evaluated = [arm for arm in sorted(arms, key=lambda arm: arm != reference) if found[arm]]
    rights: dict[str, Rights] = {}
    why_not = {arm: "not evaluated" for arm in arms if not found[arm]}
    for arm in evaluated:
        if any(seed.items != found[arm][0].items for seed in found[arm]):
            why_not[arm] = "its training seeds answered different items"
        elif found[arm][0].items != found[evaluated[0]][0].items:
            why_not[arm] = f"answered other items than {evaluated[0]}"
        else:
            rights[arm] = _by_task(found[arm])
    return Answered({arm: rights[arm] for arm in arms if arm in rights}, why_not)


def _seeds(run: Store, arm: str) -> list[_Seed]:
    """Results of each training seed that the recipe asks for; empty where the first one was not evaluated.

    A model of rows that were sealed before the dataset grew is another arm's business: it is left out.
    """
    pattern = re.compile(rf"{re.escape(arm)}(?:\.seed-(\d+))?-items\.jsonl")
    names = {int(match[1] or 0): name for name in run.names("evaluation") if (match := pattern.fullmatch(name))}
    if 0 not in names:
        return []
    wanted = read_object(run, "recipe.json").get("recipe", {}).get("compare", {}).get("training_seeds", len(names))
    numbers = [n for n in sorted(names) if n < wanted and _dataset(run, arm, n) == _dataset(run, arm, 0)]
    files = [read_metrics(run, f"evaluation/{names[number]}") for number in numbers]
    return [
        _Seed([(item["task"], item["input"], item["gold"]) for item in items], [item["right"] for item in items])
        for items in files
    ]


def _dataset(run: Store, arm: str, number: int) -> str | None:
    """Digest of the rows that a model was trained on."""
    return read_object(run, f"stages/train-{arm}{f'.seed-{number}' if number else ''}.json").get("dataset")


def _by_task(seeds: Sequence[_Seed]) -> dict[str, NDArray[np.bool_]]:
    rights = np.array([seed.rights for seed in seeds], dtype=bool)
    tasks = np.array([task for task, _, _ in seeds[0].items])
    return {str(task): rights[:, tasks == task] for task in np.unique(tasks)}
