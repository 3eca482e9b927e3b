"""Plan records: logged waves of work, and the flows that follow from them.

Everything a unit's requests depend on is in its record, so a unit can be done again anywhere; its sampled text does not repeat.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Cell:
    """Where diversity is planned and yield is measured: bundle, difficulty, context and target label.

    Attributes:
        cell_id: Digest of all that it holds and its bundle.
        draft_text: The end of the draft prompt, after the bundle's prefix.
        difficulty: The recipe's word for it, or empty.
        label: The label that the input shall have, or None.
        context: The recipe's word for where it shall play, or empty.
    """

    cell_id: str
    draft_text: str
    difficulty: str = ""
    label: str | None = None
    context: str = ""


@dataclass(frozen=True, slots=True)
class Bundle:
    """An ordered set of principles (or demonstrations, in the direct arm), rendered.

    Attributes:
        bundle_id: Digest of the two prefixes.
        principles: Ids of its principles, in order.
        draft_prefix: Byte-identical start of every draft prompt.
        answer_prefix: Byte-identical start of every answer prompt; the input follows.
    """

    bundle_id: str
    principles: tuple[str, ...]
    draft_prefix: str
    answer_prefix: str


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """One logged wave of work: `num_units` units of `flows_per_unit` flows of one bundle of one task.

    Attributes:
        index: Place in the plan, from 0; plan order is (index, unit number).
        task: Task name.
        round: Evolution round, from 0.
        bundle: The bundle of all its units.
        cells: Those that its flows work on.
        num_units: Units in it.
        flows_per_unit: Flows in each.
        cell_flows: Flows on each of `cells`, over all units; each unit has about the same mix.
        draft_temperature: How drafts are drawn, where it is not as the recipe's `generation.draft` says.
    """

    index: int
    task: str
    round: int
    bundle: Bundle
    cells: tuple[Cell, ...]
    num_units: int
    flows_per_unit: int
    cell_flows: tuple[int, ...]
    draft_temperature: float | None = None

    def __post_init__(self) -> None:
        flows = self.num_units * self.flows_per_unit
        assert len(self.cell_flows) == len(self.cells), f"{len(self.cell_flows)} shares for {len(self.cells)} cells"
        assert sum(self.cell_flows) == flows, f"{sum(self.cell_flows)} of {flows} flows have a cell"

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "PlanRecord":
        """The inverse of `to_json`."""
        bundle: dict[str, Any] = {**value["bundle"], "principles": tuple(value["bundle"]["principles"])}
        cells = tuple(Cell(**cell) for cell in value["cells"])
        flows = tuple(value["cell_flows"])
        fields: dict[str, Any] = {**value, "bundle": Bundle(**bundle), "cells": cells, "cell_flows": flows}
        return PlanRecord(**fields)

    def units(self) -> Iterator[str]:
        """Ids of its units, in plan order."""
        return iter(unit_ids(self.index, 0, self.num_units))


def unit_id(record_index: int, unit_number: int) -> str:
    """The id of a unit; the alphabetical order of ids is plan order."""
    return f"{record_index:06d}-{unit_number:06d}"


def unit_ids(record_index: int, start: int, end: int) -> list[str]:
    """The ids of units [start, end) of a record."""
    prefix = f"{record_index:06d}-"
    return [f"{prefix}{number:06d}" for number in range(start, end)]


def parse_unit_id(unit: str) -> tuple[int, int]:
    """(record index, unit number) of a unit id."""
    record_index, unit_number = unit.split("-")
    return int(record_index), int(unit_number)


@dataclass(frozen=True, slots=True)
class FlowPlan:
    """One flow of a unit: which cell it works on.

    Attributes:
        unit: Unit id.
        index: Place in the unit.
        cell: The cell.
    """

    unit: str
    index: int
    cell: Cell


def unit_flows(record: PlanRecord, unit_number: int) -> list[FlowPlan]:
    """The flows of one unit.

    The record's flows stand in a row, cell by cell, and are taken from it in steps of about 0.618 of its length, each once: so every
    unit gets its part of every cell without a list of all flows.
    """
    unit = unit_id(record.index, unit_number)
    total = record.num_units * record.flows_per_unit
    step, ends = _step(total), list(accumulate(record.cell_flows))
    first = unit_number * record.flows_per_unit
    cells = (record.cells[bisect_right(ends, (first + i) * step % total)] for i in range(record.flows_per_unit))
    return [FlowPlan(unit, i, cell) for i, cell in enumerate(cells)]


def even_parts(total: int, parts: int) -> tuple[int, ...]:
    """`total` in so many parts that differ by one at most: 8 in 3 is 3, 3, 2."""
    return tuple(total // parts + (part < total % parts) for part in range(parts))


def _step(total: int) -> int:
    """A step that comes to each of `total` places once: without a divisor in common with it."""
    near = max(1, round(_GOLDEN * total))
    return next(step for step in range(near, total + 1) if math.gcd(step, total) == 1)
