"""How many rows a task shall have in all, and of each group of cells where the recipe wants them even."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from generation.config import TargetPer
from generation.curation.balance import Kinds
from generation.instances.plan import Bundle, Cell, even_parts

WHOLE = ""
"""The only group of a task whose target is not divided."""


@dataclass(frozen=True)
class Quotas:
    """A task's target and how it is divided.

    Each group gets its even part of the *next* target: with targets 100 and 500 in two groups, the first 100 rows hold 50 of each, and
    the 500 hold 250. So rows that were sealed stay the first of those that a larger target keeps.

    Attributes:
        target: Rows to keep.
        sealed: Smaller targets that were sealed before (`dataset.sealed_targets`), ascending.
        groups: Cell id to its group, in plan order (`cell_groups`); empty: all rows are one group, whatever their cells.
    """

    target: int
    sealed: tuple[int, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict[str, str])

    @cached_property
    def targets(self) -> tuple[int, ...]:
        """Rows at which the dataset is cut, ascending; the last is the target."""
        return (*(size for size in self.sealed if size < self.target), self.target)

    def group(self, cell: str) -> str | None:
        """The group of a row of a cell; None for a cell that the plan does not have."""
        return self.groups.get(cell) if self.groups else WHOLE

    def share(self, group: str, kept: int) -> int:
        """Rows of a group in the next target, after `kept` rows of any group."""
        target = next((target for target in self.targets if kept < target), self.target)
        return self._shares[target].get(group, 0)

    @cached_property
    def shares(self) -> Mapping[str, int]:
        """Rows of each group in the target."""
        return self._shares[self.target]

    @cached_property
    def _shares(self) -> dict[int, dict[str, int]]:
        names = list(dict.fromkeys(self.groups.values())) or [WHOLE]
        return {target: dict(zip(names, even_parts(target, len(names)), strict=True)) for target in self.targets}


def quotas_of(target: int, per: TargetPer, kinds: Kinds, sealed: Sequence[int] = ()) -> Quotas:
    """The quotas of a task with these bundles and cells."""
    return Quotas(target, tuple(sorted(sealed)), cell_groups(kinds, per))


def cell_groups(kinds: Kinds, per: TargetPer) -> dict[str, str]:
    """Cell id to the name of its group; empty where the target is not divided."""
    if per == "task":
        return {}
    return {cell.cell_id: _name(bundle, cell, per) for bundle, cells in kinds for cell in cells}


def _name(bundle: Bundle, cell: Cell, per: TargetPer) -> str:
    levels = {"difficulty": cell.difficulty, "context": cell.context, "label": cell.label or ""}
    if per == "cell":
        return " ".join(filter(None, [f"bundle {bundle.bundle_id[:8]}", *levels.values()]))
    return f"{per} {levels[per]}".strip()
