"""The arms of a comparison: what each of them writes with, trains on and is asked with. Data only.

All arms go through the same code; they differ in nothing but the fields of their `ArmSpec`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PrincipleSource = Literal["none", "selected", "minus", "placebo", "small-written", "unselected"]
"""Where an arm's principles come from: selected ones; the same without a level; those of another task; the small model; chance."""

MINUS = "psi-minus-"


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """One arm.

    Attributes:
        name: As recipes and folders name it.
        meaning: For a reader of the report.
        principles: Where its principles come from.
        writer: The pool that writes its rows; empty where it writes none.
        voting: Whether blind answers vote on a row; else the first answer is taken.
        trained: Whether a model is trained on its rows, or, where it writes none, on the human examples alone.
        prompt: How its model is asked in evaluation: as students are, with worked examples, or with the principles.
        minus_level: The level that `minus` leaves out.
    """

    name: str
    meaning: str
    principles: PrincipleSource = "none"
    writer: Literal["", "small", "large"] = ""
    voting: bool = True
    trained: bool = False
    prompt: Literal["student", "fewshot", "principles"] = "student"
    minus_level: str = ""

    @property
    def writes(self) -> bool:
        """Whether rows are generated for it."""
        return self.writer != ""

    @property
    def pools(self) -> frozenset[str]:
        """The pools that make its principles out of those of the run, and its rows."""
        asked = {"minus": {"large", "small"}, "small-written": {"small"}}.get(self.principles, set[str]())
        return frozenset({self.writer, *asked} - {""})

    @property
    def owns_principles(self) -> bool:
        """Whether its principles are kept in its own folder; `selected` ones are those of the run."""
        return self.principles not in {"none", "selected"}


def _written(name: str, meaning: str, principles: PrincipleSource, minus_level: str = "") -> ArmSpec:
    return ArmSpec(name, meaning, principles, writer="small", trained=True, minus_level=minus_level)


_FIXED = (
    ArmSpec("base", "the small model, untrained"),
    ArmSpec("fewshot", "the small model, untrained, with worked examples in each prompt", prompt="fewshot"),
    ArmSpec("inference-only", "the small model, untrained, with the principles in each prompt", "selected", prompt="principles"),
    ArmSpec("seeds", "trained on the human examples alone", trained=True),
    _written("direct", "trained on rows that the small model wrote from worked examples", "none"),
    ArmSpec("large", "trained on rows that the large model wrote from worked examples", writer="large", trained=True),
    _written("psi", "trained on rows that the small model wrote from principles", "selected"),
    _written("placebo", "as psi, with the principles of another task", "placebo"),
    _written("small-written", "as psi, with principles that the small model wrote", "small-written"),
    _written("no-selection", "as psi, with principles drawn by lot instead of selected", "unselected"),
    ArmSpec(
        "no-voting", "as psi, with the first answer taken instead of a vote", "selected", "small", voting=False, trained=True
    ),
)  # fmt: skip
_BY_NAME = {spec.name: spec for spec in _FIXED}


def arm_spec(name: str) -> ArmSpec:
    """The arm of that name; `psi-minus-<level>` for any level.

    Raises:
        ValueError: There is no such arm.
    """
    level = name.removeprefix(MINUS)
    if level != name and level:
        return _written(name, f"as psi, selected without principles of level {level}", "minus", level)
    if name not in _BY_NAME:
        raise ValueError(f"'{name}' is no arm; known are {', '.join(_BY_NAME)} and {MINUS}<level>")
    return _BY_NAME[name]


def known_arm(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: There is no such arm.
    """
    return arm_spec(name).name


def in_reading_order(names: Iterable[str]) -> list[str]:
    """Arms without repeats, in the order of this page; the `psi-minus-*` arms stand after psi."""
    order = [spec.name for spec in _FIXED]
    after_psi = order.index("psi") + 0.5
    return sorted(set(names), key=lambda name: (order.index(name) if name in _BY_NAME else after_psi, name))
