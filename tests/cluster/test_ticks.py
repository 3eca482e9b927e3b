"""The driver's tick: what it asks of the coordinator, how long that holds the answer, and what the driver remembers between two."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.cell_yield import CellYield
from cluster.coordinator import Coordinator
from cluster.generate import generate_arm
from cluster.protocol import Beat, Tick
from cluster.task_fold import TaskFold, TaskWork
from cluster.waves import CellStanding
from generation.config import AnswerConfig, CurationConfig, GenerationConfig, TaskConfig
from generation.curation.fold import Verdict
from generation.instances.plan import Bundle, Cell, PlanRecord, unit_id
from generation.manifest_state import Shard
from generation.rows import Row
from generation.storage import Store
from generation.task import Task
from generation.unit_places import UnitPlace
from generation.visible import SettledUnit
from tests.cluster import fake_replicas as fake

NOTHING_SEEN = {"a": (0, "")}
LONG = 3600.0
"""Longer than a test may take."""


class HeardLink:
    """A link that notes what the driver asks."""

    def __init__(self, link: fake.LocalLink, asked: list[str]) -> None:
        self.handle = link
        self._asked = asked

    def call(self, method: str, *arguments: Any) -> Any:
        self._asked.append(method)
        return self.handle.call(method, *arguments)


def test_a_tick_asks_the_coordinator_once_and_again_only_to_add_to_the_plan(tmp_path: Path) -> None:
    asked: list[str] = []

    @contextmanager
    def heard(store: Store, lease_seconds: float) -> Iterator[HeardLink]:
        with fake.local_coordinator(store, lease_seconds) as link:
            yield HeardLink(link, asked)

    run, pool = fake.arm_run(tmp_path, generation={"accepted_rows": 300}), fake.FakePool(fake.write_some(0.5))
    pool.tend = lambda _: asked.append("tend")
    assert generate_arm(run, lambda: pool, lambda _: None, heard).accepted == {"a": 300}
    tends = [index for index, what in enumerate(asked) if what == "tend"]
    ticks = [asked[start + 1 : end] for start, end in pairwise(tends)]
    assert len(ticks) > 3
    assert all(tick[0] == "tick" and set(tick[1:]) <= {"add_records"} for tick in ticks)
    assert sum(len(tick) for tick in ticks) > len(ticks)


def record(index: int, units: int) -> PlanRecord:
    return PlanRecord(index, "a", 0, Bundle(f"b{index}", (), "", ""), (Cell("c", ""),), units, 2, (2 * units,))


def shard(file: str, *units: str) -> Shard:
    return Shard(file, "ab" * 32, 10, tuple((unit, 2 * i, 2 * i + 2) for i, unit in enumerate(units)), {}, {}, {})


async def is_held(coordinator: Coordinator) -> bool:
    """Whether the answer to a patient driver that has folded nothing is held. Nothing comes meanwhile."""
    event, seen = coordinator._stirred, list[str]()
    wait = event.wait

    async def watched() -> bool:
        seen.append("held")
        await wait()
        seen.append("let go")
        return True

    event.wait = watched
    await coordinator.tick(Tick(NOTHING_SEEN, wait_seconds=0.01))
    event.wait = wait
    return seen == ["held"]


@pytest.mark.parametrize("unit", [unit_id(0, 0), unit_id(0, 1)], ids=["to fold", "behind a gap"])
def test_an_answer_is_held_until_a_unit_is_settled_wherever_it_is_in_the_plan(tmp_path: Path, unit: str) -> None:
    async def scene() -> None:
        coordinator = Coordinator(str(tmp_path), 60.0)
        await coordinator.add_records([record(0, 40)])
        held = asyncio.create_task(coordinator.tick(Tick(NOTHING_SEEN, wait_seconds=LONG)))
        await asyncio.wait([held], timeout=0.1)
        assert not held.done()
        await coordinator.commit("r", "", shard("f", unit))
        answer = await asyncio.wait_for(held, 30)
        assert (answer.prefix.num_settled, answer.progress.committed) == ({"a": 1}, 1)
        assert await is_held(coordinator) == (unit == unit_id(0, 1))  # what is not folded yet is said at once

    asyncio.run(scene())


def test_what_is_settled_between_two_ticks_is_said_with_the_next_one_and_once(tmp_path: Path) -> None:
    async def scene() -> None:
        coordinator = Coordinator(str(tmp_path), 60.0)
        await coordinator.add_records([record(0, 40)])
        await coordinator.tick(Tick(NOTHING_SEEN))
        await coordinator.give_up(unit_id(0, 7), "poison")
        assert not await is_held(coordinator)
        assert await is_held(coordinator)

    asyncio.run(scene())


def test_a_lease_is_said_where_there_is_less_left_than_one_for_each_replica(tmp_path: Path) -> None:
    async def scene() -> None:
        coordinator = Coordinator(str(tmp_path), 60.0)
        await coordinator.add_records([record(0, 12)])
        left = 12
        while left:
            answer = await coordinator.lease("r", Beat())
            assert answer.lease is not None
            left -= len(answer.lease.units)
            assert await is_held(coordinator) == (left >= 4)
        assert (await coordinator.lease("r", Beat(held=(unit_id(0, 0),)))).lease is None
        assert await is_held(coordinator)

    asyncio.run(scene())


CELLS = ("c0", "c1", "c2")
KINDS = tuple((Bundle(f"b{c}", (), "", ""), (Cell(c, ""),)) for c in CELLS)
COUNTED_AS = {"kept": "new", "overshoot": "new", "near_duplicate": "repeated", "parse": "failed"}


@given(st.lists(st.none() | st.tuples(st.sampled_from(CELLS), st.sampled_from(sorted(COUNTED_AS))), max_size=60))
def test_standings_tell_of_all_rows_that_were_added_whenever_they_are_asked(
    steps: list[tuple[str, str] | None],
) -> None:
    cells, added = CellYield(CELLS, window=4), {cell: list[str]() for cell in CELLS}
    for step in [*steps, None]:
        if step is None:
            last = {cell: Counter(outcomes[-4:]) for cell, outcomes in added.items()}
            assert cells.standings() == {cell: CellStanding(counts.total(), **counts) for cell, counts in last.items()}
        else:
            cell, why = step
            verdict = Verdict("r", kept=True) if why == "kept" else Verdict("r", kept=False, stage=why)
            cells.add(Row("r", "u", 0, "a", "instance", cell=cell, input="text"), verdict)
            added[cell].append(COUNTED_AS[why])


class OneRow:
    """Reads the row of a unit: its text and its cell stand in the file's name."""

    def rows(self, place: UnitPlace) -> list[Row]:
        text, cell = place.file.split()
        return [Row("r", text, 0, "a", "instance", input=text, answer="yes", cell=cell)]


def task_fold() -> TaskFold:
    config = TaskConfig(name="a", description="d", answer=AnswerConfig(kind="exact"), seeds="x")
    curation = CurationConfig(min_input_chars=1, near_duplicate=None)
    generation = GenerationConfig(accepted_rows=6, target_per="cell", flows_per_unit=1)
    return TaskFold(TaskWork(Task(config, ()), KINDS, ()), generation, curation)


@settings(deadline=None)
@given(st.lists(st.sampled_from(("plan", "fold", "give up", "restart", "ask", "ask ahead")), max_size=40))
def test_a_standing_is_that_of_a_fold_that_was_never_asked_before(steps: list[str]) -> None:
    asked, told = task_fold(), list[tuple[str, int]]()
    planned = folded = 0
    for step in [*steps, "ask"]:
        if step.startswith("ask"):
            fresh = task_fold()
            for method, number in told:
                tell(fresh, method, number)
            settled = folded if step == "ask" else planned
            assert asked.standing(settled, settled) == fresh.standing(settled, settled)
            continue
        if step == "plan":
            number, planned = planned, planned + 1
        elif step == "restart":
            number, folded = 0, 0
        elif folded < planned:
            number, folded = folded, folded + 1
        else:
            continue
        told.append((step, number))
        tell(asked, step, number)


def tell(fold: TaskFold, what: str, number: int) -> None:
    bundle, cells = KINDS[number % 3]
    unit = unit_id(number, 0)
    if what == "plan":
        fold.add_record(PlanRecord(number, "a", 0, bundle, cells, 1, 1, (1,)))
    elif what == "restart":
        fold.restart()
    else:
        place = UnitPlace(f"{unit} {cells[0].cell_id}", "", 0, 1)
        fold.absorb([SettledUnit(unit, None if what == "give up" else place)], OneRow())
