"""Tasks and their human examples: reading seeds, splitting them, finding and comparing answers."""

from dataclasses import dataclass
from typing import Literal

from generation.config import TaskConfig

Split = Literal["mine", "validate", "demo"]


@dataclass(frozen=True, slots=True)
class Seed:
    """A human-written example.

    Attributes:
        seed_id: blake2b-128 of (task, input, output).
        input: As in the file, stripped.
        output: The canonical answer.
        rationale: How the answer comes about, or empty.
        split: Which stage may use it.
    """

    seed_id: str
    input: str
    output: str
    rationale: str = ""
    split: Split = "mine"


@dataclass(frozen=True)
class Task:
    """A task with its examples. Templates see it as `task`.

    Attributes:
        config: Its section of the recipe.
        seeds: All of them, in file order.
    """

    config: TaskConfig
    seeds: tuple[Seed, ...]

    @property
    def name(self) -> str:
        """Its name in the recipe."""
        return self.config.name

    @property
    def description(self) -> str:
        """What it is, as the trained model will see it."""
        return self.config.description

    @property
    def labels(self) -> tuple[str, ...]:
        """The closed label space, or empty."""
        return self.config.answer.labels

    def split(self, name: Split) -> tuple[Seed, ...]:
        """Its seeds of one split, in file order."""
        return tuple(seed for seed in self.seeds if seed.split == name)
