"""The files of a run folder that its report is made from, read tolerantly: what is not there is empty or None.

Seeds and generated rows are not among them, so that no text of a private task can get into a report.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from generation.arms import arm_spec, in_reading_order
from generation.errors import StorageError
from generation.storage import Store

_ARM_STAGE = re.compile(r"(?:generate|train|evaluate)-(.+?)(?:\.seed-\d+)?")


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What a report needs of a run's small files.

    Attributes:
        run: The run folder.
        recipe: `recipe.json`, or empty.
        arms: Those that the recipe asks for or the run has, in reading order.
        stages: `stages/*.json` by name, in the order in which they began.
        metrics: Lines of `metrics/generation-*.jsonl` by arm, in time order.
        summaries: `dataset/round-0/summary.json` by trained arm, or empty.
    """

    run: Store
    recipe: dict[str, Any]
    arms: list[str]
    stages: dict[str, dict[str, Any]]
    metrics: dict[str, list[dict[str, Any]]]
    summaries: dict[str, dict[str, Any]]

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved recipe."""
        return self.recipe.get("recipe", self.recipe)

    @property
    def generating_arms(self) -> list[str]:
        """Those of `arms` that generate rows."""
        return [arm for arm in self.arms if arm_spec(arm).writes]

    @property
    def trained_arms(self) -> list[str]:
        """Those of `arms` that have a dataset and a training job of their own."""
        return [arm for arm in self.arms if arm_spec(arm).trained]

    def folder(self, arm: str) -> Store:
        """Where an arm keeps its plan, rows, dataset and model."""
        return arm_folder(self.run, arm)


def open_run(run: Store) -> RunFiles:
    """Read them.

    Raises:
        StorageError: The folder does not exist, or a file in it is not what its name says.
    """
    if not run.exists(""):
        raise StorageError(f"{run.uri}: no such run folder; check the path, or start the run with `psi run RECIPE`")
    recipe = read_object(run, "recipe.json")
    names = [name for name in run.names("stages") if name.endswith(".json")]
    stages = {name.removesuffix(".json"): read_object(run, f"stages/{name}") for name in names}
    arms = _arms(recipe, stages)
    folders = {arm: arm_folder(run, arm) for arm in arms if arm_spec(arm).trained}
    return RunFiles(
        run=run,
        recipe=recipe,
        arms=arms,
        stages=dict(sorted(stages.items(), key=lambda item: moment(item[1].get("started")) or 0.0)),
        metrics={arm: _generation_metrics(folder) for arm, folder in folders.items() if arm_spec(arm).writes},
        summaries={arm: read_object(folder, "dataset/round-0/summary.json") for arm, folder in folders.items()},
    )


def _arms(recipe: Mapping[str, Any], stages: Iterable[str]) -> list[str]:
    """A record of a recipe may be older than the arms that were added to its run."""
    asked = recipe.get("recipe", recipe).get("generation", {}).get("arms", ("psi",))
    done = [match[1] for stage in stages if (match := _ARM_STAGE.fullmatch(stage))]
    return in_reading_order([*asked, *done])


def arm_folder(run: Store, arm: str) -> Store:
    """The folder of an arm: the run itself for psi."""
    return run if arm == "psi" else run.child(f"arms/{arm}")


def read_object(store: Store, path: str) -> dict[str, Any]:
    """A JSON object; empty where the file is not there.

    Raises:
        StorageError: It is something else.
    """
    if not store.exists(path):
        return {}
    try:
        value = store.read_json(path)
    except ValueError as error:
        raise StorageError(f"{store.uri}/{path}: not JSON ({error}); remove it and run its stage again") from error
    if not isinstance(value, dict):
        raise StorageError(f"{store.uri}/{path}: not a JSON object; remove it and run its stage again")
    return value


def read_metrics(store: Store, path: str) -> list[dict[str, Any]]:
    """The objects of a metrics file; a line that a killed process left half written is skipped."""
    objects = []
    for line in store.read(path).splitlines() if store.exists(path) else []:
        try:
            objects.append(json.loads(line))
        except ValueError:
            continue
    return [value for value in objects if isinstance(value, dict)]


def _generation_metrics(folder: Store) -> list[dict[str, Any]]:
    names = [name for name in folder.names("metrics") if name.startswith("generation") and name.endswith(".jsonl")]
    lines = [line for name in names for line in read_metrics(folder, f"metrics/{name}")]
    timed = [(moment(line.get("time")), line) for line in lines]
    return [line for _, line in sorted(((at, line) for at, line in timed if at is not None), key=lambda pair: pair[0])]


def number(values: Mapping[str, Any], *keys: str) -> float | None:
    """The finite number under the first of some keys that has one, exactly as it stands there; else None."""
    for key in keys:
        value = values.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return value
    return None


def moment(value: object) -> float | None:
    """A time as seconds since 1970, from ISO text or from such a number; None where it is neither."""
    if isinstance(value, int | float):
        return float(value)
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return None


def total(value: object) -> float | None:
    """A count, or the sum of an object of counts; None where it is neither."""
    if isinstance(value, dict):
        return sum(part for part in value.values() if isinstance(part, int | float))
    return number({"value": value}, "value")
