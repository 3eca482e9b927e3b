import hashlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.desk import MAX_ATTEMPTS
from cluster.ledger import MAX_UNITS_PER_LEASE, Grant, Ledger
from cluster.protocol import Care
from generation.unit_places import UnitPlaces

LEASE_SECONDS = 10.0


def ledger(*waves: tuple[str, int], max_attempts: int = 3, places: UnitPlaces | None = None) -> Ledger:
    made = Ledger(UnitPlaces() if places is None else places, LEASE_SECONDS, max_attempts)
    for bundle, units in waves:
        made.add_record(bundle, units)
    return made


def unit(record: int, number: int) -> str:
    return f"{record:06d}-{number:06d}"


def show(places: UnitPlaces, file: str, *units: str) -> None:
    places.show([(file, hashlib.sha256(file.encode()).hexdigest(), 10, [(name, 0, 2) for name in units])])


def test_a_lease_holds_units_of_one_record_and_ends_with_their_commit():
    book = ledger(("b0", 20), ("b1", 19))
    first = book.lease("r", 0.0)
    assert first.units == tuple(unit(0, number) for number in range(MAX_UNITS_PER_LEASE))
    assert book.commit("r", first.units, "f", 1.0).won == first.units
    assert (book.num_leased, book.num_free) == (0, 35)


def test_leases_shrink_near_the_end():
    book = ledger(("b", 20))
    for replica in "wxyz":
        book.lease(replica, 0.0)
    sizes = []
    while grant := book.lease("w", 0.0):
        sizes.append(len(grant.units))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
    assert max(sizes) <= MAX_UNITS_PER_LEASE


def test_a_replica_stays_with_its_bundle_as_long_as_that_has_units_and_others_take_the_next():
    book = ledger(("b0", 50), ("b1", 50))
    first, second = book.lease("x", 0.0).units[0][:6], book.lease("y", 0.0).units[0][:6]
    assert {first, second} == {"000000", "000001"}
    for _ in range(8):
        assert {name[:6] for name in book.lease("x", 0.0).units} == {first}
        assert {name[:6] for name in book.lease("y", 0.0).units} == {second}


def test_who_has_no_bundle_takes_the_one_with_most_left_for_each_replica_on_it():
    book = ledger(("small", 10), ("large", 40), ("medium", 25), ("large", 10))
    taken = [book.lease(replica, 0.0).units[0][:6] for replica in "abcd"]
    assert taken == ["000001", "000002", "000001", "000001"]


def test_a_bundle_of_long_units_comes_first():
    book = ledger(("a short one", 40), ("long", 40))
    for replica, record in (("x", 0), ("y", 1)):
        grant = book.lease(replica, 0.0)
        assert grant.units[0][:6] == f"{record:06d}"
        book.commit(replica, grant.units, f"f{record}", 1.0)
        for name in grant.units:
            book.learn(name, 1000.0 if record else 100.0)
        book.forget(replica, "left", blame=False)
    assert [book.lease(replica, 2.0).units[0][:6] for replica in "abc"] == ["000001"] * 3


def test_units_of_a_silent_replica_go_to_the_next_who_asks_and_the_first_complete_commit_wins():
    book = ledger(("b", 1))
    late = book.lease("slow", 0.0)
    assert book.lease("fast", LEASE_SECONDS - 1) is None
    assert book.lease("fast", LEASE_SECONDS).units == late.units
    assert book.commit("slow", late.units, "slow-file", LEASE_SECONDS + 1).won == late.units
    assert book.commit("fast", late.units, "fast-file", LEASE_SECONDS + 2).lost == late.units
    assert book.commit("slow", late.units, "slow-file", LEASE_SECONDS + 3).committed == late.units


def test_steps_and_commits_renew_the_leases_of_a_replica_and_words_alone_do_not():
    book = ledger(("b", 40))
    first, second = book.lease("r", 0.0), book.lease("r", 0.0)
    book.hear("r", 5, (*first.units, *second.units), 6.0)
    book.commit("r", first.units, "f", 12.0)
    book.hear("r", 5, second.units, 18.0)
    book.expire(21.0)
    assert book.num_leased == len(second.units)
    book.hear("r", 5, second.units, 21.5)
    book.expire(22.0)
    assert book.num_leased == 0
    assert book.num_replicas == 1


def test_the_last_failed_attempt_gives_the_unit_up():
    book, now = ledger(("b", 1)), 0.0
    for _ in range(3):
        assert book.lease("r", now).units == (unit(0, 0),)
        now += LEASE_SECONDS
    assert book.lease("r", now) is None
    ((buried, reason),) = book.take_buried()
    assert buried == unit(0, 0)
    assert reason == "3 attempts, the last: no step of replica r in 10 s"
    assert book.commit("r", [buried], "f", now).lost == (buried,)
    assert book.take_buried() == []


def test_who_left_without_blame_costs_its_units_nothing():
    book = ledger(("b", 1))
    for _ in range(9):
        book.lease("r", 0.0)
        book.forget("r", "its node drains", blame=False)
    for _ in range(9):
        grant = book.lease("r", 0.0)
        book.release("r", grant.units, "storage", blame=False)
    assert book.lease("s", 0.0).care is None
    assert book.take_buried() == []


def test_the_units_of_a_dead_replica_come_first():
    book = ledger(("b0", 4), ("b1", 40))
    lost = book.lease("dying", 0.0)
    book.lease("other", 0.0)
    book.forget("dying", "killed", blame=True)
    assert set(book.lease("other", 1.0).units) <= set(lost.units)


def test_a_unit_that_failed_twice_is_leased_alone_and_then_with_care():
    book = ledger(("b", 8), max_attempts=9)
    for _ in range(2):
        assert len(book.lease("r", 0.0).units) == 4
        book.forget("r", "killed", blame=True)
    assert [len(book.lease("r", 0.0).units) for _ in range(4)] == [1, 1, 1, 1]
    book.forget("r", "killed", blame=True)
    assert book.lease("r", 0.0).care == Care(16)


def test_units_that_are_not_in_the_plan_are_lost():
    assert ledger(("b", 1)).commit("r", [unit(0, 1), unit(7, 0)], "f", 0.0).lost == (unit(0, 1), unit(7, 0))


@pytest.mark.parametrize("committed", [True, False])
def test_what_the_manifest_knows_is_not_leased_again(committed: bool):
    places = UnitPlaces()
    _ = show(places, "f", unit(0, 0)) if committed else places.bury(unit(0, 0))
    book = ledger(("b", 2), places=places)
    assert (book.num_planned, book.num_free) == (2, 1)
    assert book.lease("r", 0.0).units == (unit(0, 1),)
    assert book.commit("r", [unit(0, 0)], "f", 0.0).committed == ((unit(0, 0),) if committed else ())


def test_replicas_that_were_not_heard_of_for_a_lease_time_do_not_count():
    book = ledger(("b", 0))
    book.lease("x", 0.0)
    book.lease("y", LEASE_SECONDS - 1)
    assert book.num_replicas == 2
    book.expire(LEASE_SECONDS)
    assert book.num_replicas == 1


def test_what_a_replica_holds_is_leased_to_it_after_a_restart_and_what_others_settled_is_dropped():
    places = UnitPlaces()
    show(places, "f", unit(0, 1))
    book = ledger(("b", 9), places=places)
    assert book.hear("r", 1, (unit(0, 0), unit(0, 1), unit(5, 0)), 3.0) == (unit(0, 1), unit(5, 0))
    assert (book.num_leased, book.num_free) == (1, 7)
    assert unit(0, 0) not in book.lease("s", 5.0).units
    book.forget("s", "left", blame=False)
    book.expire(3.0 + LEASE_SECONDS)
    assert book.num_leased == 0
    assert book.lease("s", 14.0).units[0] == unit(0, 0)


def test_after_a_restart_nothing_is_leased_until_all_had_the_time_to_say_what_they_hold():
    book = ledger(("b", 20))
    book.hear("x", 5, (unit(0, 0),), 0.0)
    assert book.lease("x", 0.0) is None
    book.hear("y", 5, (unit(0, 1),), 1.0)
    later = LEASE_SECONDS / 5
    assert {unit(0, 0), unit(0, 1)}.isdisjoint(book.lease("x", later).units)


def test_a_replica_that_wakes_up_holds_nobody_up():
    book = ledger(("b", 2))
    book.lease("x", 0.0)
    book.hear("y", 5, (), LEASE_SECONDS + 1)
    book.expire(LEASE_SECONDS + 1)
    book.hear("x", 5, (unit(0, 0),), LEASE_SECONDS + 1)
    assert book.lease("y", LEASE_SECONDS + 1).units == (unit(0, 1),)


def test_a_lease_whose_answer_was_lost_comes_back_though_its_replica_works_on():
    book = ledger(("b", 40))
    got, lost = book.lease("r", 0.0), book.lease("r", 0.0)
    for step in range(1, 3):
        book.hear("r", step, got.units, step * LEASE_SECONDS * 0.6)
    assert book.num_leased == len(got.units)
    assert book.lease("s", 13.0).units == lost.units


def test_a_replica_that_still_holds_a_unit_is_not_slowed_down_by_another_one_again():
    book = ledger(("b", 3))
    first, second, third = (book.lease(replica, 0.0).units for replica in "xyx")
    book.commit("x", first, "f", 1.0)
    assert book.lease("x", 9.0) is None
    book.commit("x", third, "g", 9.0)
    assert book.lease("x", 9.0).units == second


def test_the_last_units_go_to_a_second_replica_once_they_take_longer_than_usual():
    book = ledger(("b", 3))
    leases = [book.lease(replica, float(at)) for at, replica in enumerate("xyz")]
    assert [len(lease.units) for lease in leases] == [1, 1, 1]
    assert book.lease("w", 3.0) is None
    book.commit("z", leases[2].units, "f", 6.0)
    again = book.lease("z", 6.5)
    assert again.units == leases[0].units
    assert book.lease("w", 6.6).units == leases[1].units
    assert book.lease("w", 9.0) is None
    assert book.commit("z", again.units, "g", 7.0).won == again.units
    assert book.hear("x", 1, leases[0].units, 7.0) == leases[0].units
    assert book.commit("x", leases[0].units, "h", 8.0).lost == leases[0].units
    book.forget("w", "killed", blame=True)
    assert book.num_leased == 1
    assert book.commit("y", leases[1].units, "i", 9.0).won == leases[1].units
    assert (book.num_leased, book.num_free) == (0, 0)


FLOWS = 128


class Mortal:
    """Replicas that die of some flows of one unit, and now and then of something else."""

    def __init__(self, poison: set[int], accidents: list[bool], rng: Random) -> None:
        self.victim = unit(0, 2)
        self.alone: Counter[tuple[str, int]] = Counter()
        self.skipped: tuple[int, ...] = ()
        self._poison = poison
        self._accidents = accidents
        self._rng = rng

    def runs(self, grant: Grant, announce: Callable[[str, int, int], None]) -> bool:
        """Whether it survives a lease: without care all its flows run at once, with care one group after another."""
        care = grant.care or Care(FLOWS)
        firsts = range(0, FLOWS, care.group)
        accident = self._rng.choice(firsts) if self._accidents and self._accidents.pop() else None
        for first in firsts:
            running = set(range(first, first + care.group)) - set(care.skip)
            if grant.care and running:
                announce(grant.units[0], first, first + care.group)
            if first == accident or (self.victim in grant.units and self._poison & running):
                self.alone.update((grant.units[0], flow) for flow in running if care.group == 1)
                return False
        if self.victim in grant.units:
            self.skipped = care.skip
        return True


@settings(max_examples=150, deadline=None)
@given(st.sets(st.integers(0, FLOWS - 1), max_size=3), st.lists(st.booleans(), max_size=5), st.randoms())
def test_flows_that_kill_engines_are_found_and_all_others_are_committed(poison, accidents, rng):
    book, replicas, deaths = ledger(("b", 6), max_attempts=MAX_ATTEMPTS), Mortal(poison, accidents.copy(), rng), 0
    for number in range(60):
        replica, now = f"r{number}", float(number)
        grant = book.lease(replica, now)
        if grant is None:
            break
        if replicas.runs(grant, partial(book.announce, replica)):
            assert book.commit(replica, grant.units, f"f{number}", now).won == grant.units
        else:
            deaths += 1
            book.forget(replica, "killed", blame=True)
    assert (book.num_free, book.take_buried()) == (0, [])
    assert poison <= set(replicas.skipped)
    assert all(replicas.alone[replicas.victim, flow] == 2 for flow in replicas.skipped)
    assert deaths <= sum(accidents) + (4 + 2 * len(poison) if poison else 0)


class LedgerMachine(RuleBasedStateMachine):
    """Replicas lease, commit, commit again, die and stall; the coordinator restarts from what was logged."""

    @initialize()
    def start(self) -> None:
        self.waves: list[tuple[str, int]] = []
        self.fate: dict[str, str | None] = {}
        self.held: list[tuple[str, str, tuple[str, ...]]] = []
        self.now = 0.0
        self.files = 0
        self.places = UnitPlaces()
        self.book = ledger(places=self.places)
        self.on_their_way: list[str] = []
        self.steps = 0

    @rule(bundle=st.sampled_from("xyz"), units=st.integers(1, 6))
    def plan(self, bundle: str, units: int) -> None:
        self.book.add_record(bundle, units)
        self.waves.append((bundle, units))

    @rule(replica=st.sampled_from("ABC"))
    def lease(self, replica: str) -> None:
        grant = self.book.lease(replica, self.now)
        self.log_tombstones()
        if grant:
            self.files += 1
            self.held.append((replica, f"f{self.files}", grant.units))
            assert not set(grant.units) & self.fate.keys()
            assert len({unit[:6] for unit in grant.units}) == 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        """Old leases commit too, some of them again: `held` never shrinks."""
        replica, file, units = data.draw(st.sampled_from(self.held))
        outcome = self.book.commit(replica, units, file, self.now)
        for won in outcome.won:
            assert won not in self.fate
            self.fate[won] = file
            self.on_their_way.append(won)
        assert all(self.fate[unit] == file for unit in outcome.committed)
        assert all(self.fate[unit] != file for unit in outcome.lost)
        assert set(outcome.committed) | set(outcome.lost) == set(units)

    @rule(replica=st.sampled_from("ABC"), blame=st.booleans())
    def die(self, replica: str, blame: bool) -> None:
        self.book.forget(replica, "killed", blame)
        self.log_tombstones()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), blame=st.booleans())
    def release(self, data: st.DataObject, blame: bool) -> None:
        replica, _, units = data.draw(st.sampled_from(self.held))
        self.book.release(replica, units, "storage", blame)
        self.log_tombstones()

    @rule(data=st.data(), replica=st.sampled_from("ABC"), steps=st.integers(0, 1))
    def beat(self, data: st.DataObject, replica: str, steps: int) -> None:
        """It may hold any part of what it got, and things that it never got."""
        self.steps += steps
        mine = sorted({name for owner, _, units in self.held if owner == replica for name in units} | {unit(0, 0)})
        held = tuple(data.draw(st.lists(st.sampled_from(mine), unique=True)))
        dropped = self.book.hear(replica, self.steps, held, self.now)
        planned = {unit(record, number) for record, (_, units) in enumerate(self.waves) for number in range(units)}
        assert set(dropped) == {name for name in held if name in self.fate or name not in planned}
        self.log_tombstones()

    @rule()
    def arrive(self) -> None:
        """What was logged is durable."""
        for name in self.on_their_way:
            file = self.fate[name]
            _ = self.places.bury(name) if file is None else show(self.places, file, name)
        self.book.arrived(self.on_their_way)
        self.on_their_way = []

    @rule(seconds=st.floats(0, 50))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.book.expire(self.now)
        self.log_tombstones()

    @rule()
    def restart(self) -> None:
        self.arrive()
        self.book = ledger(*self.waves, places=self.places)

    @invariant()
    def units_add_up(self) -> None:
        assert self.book.num_planned == sum(units for _, units in self.waves)
        assert self.book.num_free + self.book.num_leased + len(self.fate) == self.book.num_planned

    def teardown(self) -> None:
        """Left alone with one honest replica, every unit is settled in the end."""
        if not hasattr(self, "book"):
            return
        for _ in range(1000):
            if len(self.fate) == self.book.num_planned:
                break
            grant = self.book.lease("last", self.now)
            self.log_tombstones()
            self.now += 11.0
            for won in self.book.commit("last", grant.units, f"last-{self.now}", self.now).won if grant else ():
                self.fate[won] = f"last-{self.now}"
        assert len(self.fate) == self.book.num_planned

    def log_tombstones(self) -> None:
        for buried, _ in self.book.take_buried():
            assert buried not in self.fate
            self.fate[buried] = None
            self.on_their_way.append(buried)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
