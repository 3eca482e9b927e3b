"""Plan records: logged waves of work, and the flows that follow from them.

Everything a unit's requests depend on is in its record, so a unit can be done again anywhere; its sampled text does not repeat.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Cell:
    """Where diversity is planned and yield is measured: bundle, difficulty and target label.

    Attributes:
        cell_id: Digest of all that it holds and its bundle.
        draft_text: The end of the draft prompt, after the bundle's prefix.
        difficulty: The recipe's word for it, or empty.
        label: The label that the input shall have, or None.
    """

    cell_id: str
    draft_text: str
    difficulty: str = ""
    label: str | None = None


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
        cells: Flow i of unit u works on cell (u * flows_per_unit + i) % len(cells).
        num_units: Units in it.
        flows_per_unit: Flows in each.
    """

    index: int
    task: str
    round: int
    bundle: Bundle
    cells: tuple[Cell, ...]
    num_units: int
    flows_per_unit: int

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "PlanRecord":
        """The inverse of `to_json`."""
        bundle: dict[str, Any] = {**value["bundle"], "principles": tuple(value["bundle"]["principles"])}
        cells = tuple(Cell(**cell) for cell in value["cells"])
        fields: dict[str, Any] = {**value, "bundle": Bundle(**bundle), "cells": cells}
        return PlanRecord(**fields)

    def units(self) -> Iterator[str]:
        """Ids of its units, in plan order."""
        return (unit_id(self.index, number) for number in range(self.num_units))


def unit_id(record_index: int, unit_number: int) -> str:
    """The id of a unit; the alphabetical order of ids is plan order."""
    return f"{record_index:06d}-{unit_number:06d}"


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
    """The flows of one unit."""
    unit = unit_id(record.index, unit_number)
    first = unit_number * record.flows_per_unit
    return [FlowPlan(unit, i, record.cells[(first + i) % len(record.cells)]) for i in range(record.flows_per_unit)]
