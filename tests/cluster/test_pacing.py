import math
from collections import Counter, deque
from dataclasses import dataclass, field
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.ledger import MAX_UNITS_PER_LEASE
from cluster.pacing import Allowance, Need, Standing, fitting, replicas_needed, units_ahead, units_wanted
from generation.instances.plan import Bundle, Cell, PlanRecord, even_parts


@dataclass
class World:
    """A task in simulation: replicas that take units and finish them at random, a fold that lags, groups of one cell each."""

    rng: Random
    flows: int
    parts: dict[str, int]
    yields: dict[str, tuple[float, float]]
    kept: Counter[str] = field(default_factory=Counter)
    beyond: Counter[str] = field(default_factory=Counter)
    planned: Counter[str] = field(default_factory=Counter)
    folded: Counter[str] = field(default_factory=Counter)
    free: deque[dict[str, int]] = field(default_factory=deque)
    busy: dict[int, list[dict[str, int]]] = field(default_factory=dict)
    committed: deque[tuple[dict[str, int], dict[str, int]]] = field(default_factory=deque)
    instances: int = 0
    seen: int = 0
    units: int = 0
    settled: int = 0

    @property
    def missing(self) -> int:
        return sum(part - self.kept[group] for group, part in self.parts.items())

    def standing(self) -> Standing:
        unsettled = (self.units - self.settled) * self.flows
        possible = unsettled + self.instances - self.seen
        needs = {}
        for group, part in self.parts.items():
            outstanding = self.planned[group] - self.folded[group]
            share = (self.kept[group] + self.beyond[group] + 1) / (self.folded[group] + 1)
            missing = part - self.kept[group]
            needs[group] = Need(missing, self.beyond[group], outstanding, min(outstanding, possible), share)
        return Standing(needs, self.units, self.settled)

    def plan(self, limit: int, replicas: int) -> int:
        standing = self.standing()
        wanted = [need.wanted for need in standing.needs.values()]

        def make(units: int) -> list[PlanRecord]:
            total, flows = units * self.flows, []
            for want, left in zip(wanted, range(len(wanted), 0, -1), strict=True):
                share = total - sum(flows) if left == 1 else total * want // max(1, sum(wanted))
                flows.append(share)
            cells = tuple(Cell(group, "") for group in self.parts)
            return [PlanRecord(0, "t", 0, Bundle("b", (), "", ""), cells, units, self.flows, tuple(flows))]

        units = units_wanted(standing, self.flows, replicas, sum(map(len, self.busy.values())))
        records = fitting(units, make, standing, lambda cell: cell, limit) if units else []
        more: dict[str, int] = {}
        for record in records:
            more = dict(zip(self.parts, record.cell_flows, strict=True))
            of_unit = [dict(zip(self.parts, parts, strict=True)) for parts in
                       zip(*(even_parts(flows, record.num_units) for flows in record.cell_flows), strict=True)]  # fmt: skip
            self.free.extend(of_unit)
            self.planned.update(more)
            self.units += record.num_units
        return standing.excess(more)

    def work(self, replicas: int, speed: float) -> int:
        """One tick; returns how many replicas had nothing to do."""
        for replica in range(replicas):
            held = self.busy.setdefault(replica, [])
            while len(held) < MAX_UNITS_PER_LEASE and self.free:
                held.append(self.free.popleft())
            if held and self.rng.random() < speed:
                unit = held.pop(0)
                late = sum(self.kept.values()) * 2 > sum(self.parts.values())
                brought = {g: sum(self.rng.random() < self.yields[g][late] for _ in range(n)) for g, n in unit.items()}
                self.committed.append((unit, brought))
                self.instances += sum(brought.values())
                self.settled += 1
        return sum(not held for held in self.busy.values())

    def fold(self, units: int) -> None:
        for _ in range(min(units, len(self.committed))):
            flows, brought = self.committed.popleft()
            self.folded.update(flows)
            self.seen += sum(brought.values())
            for group, rows in brought.items():
                fits = min(rows, self.parts[group] - self.kept[group])
                self.kept[group] += fits
                self.beyond[group] += rows - fits


def simulate(worlds: list[World], replicas: int, fold_units: int, ticks: int = 20_000) -> list[int]:
    """Run until all tasks are complete, and the rest is folded; idle replicas of each tick while many rows were missing."""
    idle: list[int] = []
    for tick in range(ticks):
        lacking = [world for world in worlds if world.missing > 0]
        if not lacking:
            for world in worlds:
                world.committed.extend((u, u) for held in world.busy.values() for u in held)
                world.committed.extend((u, u) for u in world.free)
                world.fold(10**9)
            return idle
        allowance = Allowance([world.standing() for world in worlds], worlds[0].flows, replicas)
        for world in lacking:
            before = world.standing().excess()
            allowance.take(before, world.plan(allowance.limit(world.standing()), replicas))
        open_rows = min(world.missing - (world.instances - world.seen) for world in worlds)
        far = open_rows > 2 * units_ahead(replicas) * worlds[0].flows
        waiting = [world.work(replicas, speed=0.3) for world in worlds]
        if far and tick:
            idle.append(min(waiting))
        for world in worlds:
            world.fold(fold_units)
    raise AssertionError(f"not done: {[world.standing() for world in worlds]}")


rates = st.sampled_from([0.02, 0.1, 0.5, 0.95, 1.0])


def a_world(seed: int, flows: int, target: int, groups: int, pair: tuple[float, float]) -> World:
    parts = dict(zip((f"g{i}" for i in range(groups)), even_parts(target, groups), strict=True))
    return World(Random(seed), flows, parts, dict.fromkeys(parts, pair))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 8), st.sampled_from([4, 16]), st.integers(1, 400), st.tuples(rates, rates),
    st.sampled_from([1, 3, 50]),
)  # fmt: skip
def test_overshoot_stays_within_two_leases_a_replica_whatever_the_yield_is_or_becomes(
    seed, replicas, flows, target, pair, fold_units
):
    world = a_world(seed, flows, target, 1, pair)
    simulate([world], replicas, fold_units)
    assert world.kept.total() == target
    assert world.beyond.total() <= 2 * MAX_UNITS_PER_LEASE * flows * replicas


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 200), st.tuples(rates, rates)
)  # fmt: skip
def test_tasks_and_groups_share_that_allowance(seed, replicas, tasks, groups, target, pair):
    worlds = [a_world(seed + task, 8, target, groups, pair) for task in range(tasks)]
    simulate(worlds, replicas, 3)
    assert all(world.kept == Counter(world.parts) for world in worlds)
    # A task may always have one unit under way, and the last flows of a group come in whole units.
    allowed = max(units_ahead(replicas), tasks * groups) * 8
    assert sum(world.beyond.total() for world in worlds) <= allowed


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.tuples(rates, rates))
def test_no_replica_waits_while_much_is_missing_even_if_the_fold_lags(seed, replicas, pair):
    world = a_world(seed, 4, 4 * units_ahead(replicas) * 4, 1, pair)
    idle = simulate([world], replicas, fold_units=max(1, replicas // 8))
    assert idle
    assert not any(idle)


@given(st.integers(1, 50), st.integers(0, 500), st.integers(0, 300), st.integers(0, 300), st.integers(1, 10_000))
def test_the_plan_goes_on_by_many_units_at_once_and_leaves_a_lease_to_be_had_for_each_replica(
    replicas, settled, leased, free, missing
):
    need = Need(missing, 0, 0, 0, 0.5)
    units = units_wanted(Standing({"": need}, settled + leased + free, settled), 8, replicas, leased)
    all_wanted = math.ceil(need.wanted / 8)
    assert units in (0, all_wanted) or units >= MAX_UNITS_PER_LEASE * replicas
    assert units == all_wanted or free + units > MAX_UNITS_PER_LEASE * replicas


def test_committed_units_count_with_their_instances_alone():
    ahead, flows = units_ahead(2), 8
    barren = Standing({"": Need(100, 0, 1000 * flows, 5, 0.01)}, planned=1000, settled=1000)
    assert Allowance([barren], flows, 2).limit(barren) >= barren.excess({"": ahead * flows})
    full = Standing({"": Need(100, 0, 1000 * flows, 100 + ahead * flows, 0.01)}, planned=1000, settled=1000)
    assert fitting(1, lambda n: record(n, flows), full, lambda cell: "", Allowance([full], flows, 2).limit(full)) == []


def test_towards_the_end_no_more_replicas_are_needed_than_units_are_left_and_one():
    def standing(settled: int, missing: int, outstanding: int) -> Standing:
        return Standing({"": Need(missing, 0, outstanding, outstanding, 0.5)}, 100, settled)

    enough = standing(95, 10, 40)  # five units of eight flows are under way
    assert replicas_needed([enough], 8) == 6
    assert replicas_needed([enough, enough], 8) == 11
    assert replicas_needed([standing(95, 100, 40)], 8) == 1 + 5 + 23
    assert replicas_needed([standing(100, 0, 0)], 8) == 1
    assert replicas_needed([standing(40, 100, 480)], 8) > 1_000


def test_one_unit_is_planned_where_nothing_is_under_way():
    stuck = Standing({"a": Need(0, 50, 0, 0, 1.0), "c": Need(1, 0, 0, 0, 1.0)}, planned=9, settled=9)
    assert len(fitting(1, lambda n: record(n, 8), stuck, str, 50)) == 1


def record(units: int, flows: int) -> list[PlanRecord]:
    return [PlanRecord(0, "t", 0, Bundle("b", (), "", ""), (Cell("c", ""),), units, flows, (units * flows,))]
