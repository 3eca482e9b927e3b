import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.ledger import MAX_UNITS_PER_LEASE, Ledger

LEASE_SECONDS = 10.0


def ledger(*waves: tuple[str, int], max_attempts: int = 3) -> Ledger:
    made = Ledger(LEASE_SECONDS, max_attempts)
    for bundle, units in waves:
        made.add_record(bundle, units)
    return made


def unit(record: int, number: int) -> str:
    return f"{record:06d}-{number:06d}"


def test_a_lease_holds_units_of_one_record_and_ends_with_their_commit():
    book = ledger(("b0", 2), ("b1", 9))
    first = book.lease("r", 0.0)
    assert first.units == (unit(0, 0), unit(0, 1))
    assert book.commit("r", first.units, "f", 1.0).won == first.units
    assert (book.num_leased, book.num_free) == (0, 9)


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


def test_a_replica_stays_with_its_bundle_and_others_take_the_next():
    book = ledger(("b0", 50), ("b1", 50))
    assert book.lease("x", 0.0).units[0] == unit(0, 0)
    assert book.lease("y", 0.0).units[0] == unit(1, 0)
    assert book.lease("x", 0.0).units[0].startswith("000000")
    assert book.lease("y", 0.0).units[0].startswith("000001")


def test_an_expired_unit_goes_to_the_next_who_asks_and_the_first_complete_commit_wins():
    book = ledger(("b", 1))
    late = book.lease("slow", 0.0)
    assert book.lease("fast", LEASE_SECONDS - 1) is None
    assert book.lease("fast", LEASE_SECONDS).units == late.units
    assert book.commit("slow", late.units, "slow-file", LEASE_SECONDS + 1).won == late.units
    assert book.commit("fast", late.units, "fast-file", LEASE_SECONDS + 2).lost == late.units
    assert book.commit("slow", late.units, "slow-file", LEASE_SECONDS + 3).committed == late.units


def test_a_commit_keeps_the_other_leases_of_its_replica_alive():
    book = ledger(("b", 40))
    first, second = book.lease("r", 0.0), book.lease("r", 0.0)
    book.commit("r", first.units, "f", LEASE_SECONDS - 1)
    book.expire(LEASE_SECONDS + 1)
    assert book.num_leased == len(second.units)
    book.expire(2 * LEASE_SECONDS)
    assert book.num_leased == 0


def test_each_failed_attempt_doubles_the_deadline_and_the_last_one_gives_the_unit_up():
    book, now, seconds = ledger(("b", 1)), 0.0, []
    while grant := book.lease("r", now):
        seconds.append(grant.seconds)
        now += grant.seconds
    assert seconds == [LEASE_SECONDS, 2 * LEASE_SECONDS, 4 * LEASE_SECONDS]
    ((buried, reason),) = book.take_buried()
    assert buried == unit(0, 0)
    assert reason.startswith("3 attempts, the last: not committed in 40 s by replica r")
    assert book.commit("r", [buried], "f", now).lost == (buried,)
    assert book.take_buried() == []


def test_the_units_of_a_dead_replica_come_first():
    book = ledger(("b0", 4), ("b1", 40))
    lost = book.lease("dying", 0.0)
    book.lease("other", 0.0)
    book.forget("dying", "killed", blame=True)
    assert set(book.lease("other", 1.0).units) <= set(lost.units)


def test_a_unit_that_failed_twice_is_leased_alone():
    book = ledger(("b", 8), max_attempts=9)
    for _ in range(2):
        assert len(book.lease("r", 0.0).units) == 4
        book.forget("r", "killed", blame=True)
    assert [len(book.lease("r", 0.0).units) for _ in range(4)] == [1, 1, 1, 1]


def test_units_that_are_not_in_the_plan_are_lost():
    assert ledger(("b", 1)).commit("r", [unit(0, 1), unit(7, 0)], "f", 0.0).lost == (unit(0, 1), unit(7, 0))


@pytest.mark.parametrize("committed", [True, False])
def test_what_the_manifest_knows_is_not_leased_again(committed: bool):
    book = ledger(("b", 2))
    book.restore(unit(0, 0), "f" if committed else None, "why")
    assert book.lease("r", 0.0).units == (unit(0, 1),)
    assert book.commit("r", [unit(0, 0)], "f", 0.0).committed == ((unit(0, 0),) if committed else ())


def test_replicas_that_were_not_heard_of_for_a_lease_time_do_not_count():
    book = ledger(("b", 0))
    book.lease("x", 0.0)
    book.lease("y", LEASE_SECONDS - 1)
    assert book.num_replicas == 2
    book.expire(LEASE_SECONDS)
    assert book.num_replicas == 1


class LedgerMachine(RuleBasedStateMachine):
    """Replicas lease, commit, commit again, die and stall; the coordinator restarts from what was logged."""

    @initialize()
    def start(self) -> None:
        self.waves: list[tuple[str, int]] = []
        self.fate: dict[str, str | None] = {}
        self.held: list[tuple[str, str, tuple[str, ...]]] = []
        self.now = 0.0
        self.files = 0
        self.book = Ledger(LEASE_SECONDS, 3)

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
        assert all(self.fate[unit] == file for unit in outcome.committed)
        assert all(self.fate[unit] != file for unit in outcome.lost)
        assert set(outcome.committed) | set(outcome.lost) == set(units)

    @rule(replica=st.sampled_from("ABC"))
    def die(self, replica: str) -> None:
        self.book.forget(replica, "killed", blame=True)
        self.log_tombstones()

    @rule(seconds=st.floats(0, 50))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.book.expire(self.now)
        self.log_tombstones()

    @rule()
    def restart(self) -> None:
        self.book = ledger(*self.waves)
        for settled, file in self.fate.items():
            self.book.restore(settled, file, "logged")

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
            self.now += 1.0
            for won in self.book.commit("last", grant.units, f"last-{self.now}", self.now).won if grant else ():
                self.fate[won] = f"last-{self.now}"
        assert len(self.fate) == self.book.num_planned

    def log_tombstones(self) -> None:
        for buried, _ in self.book.take_buried():
            assert buried not in self.fate
            self.fate[buried] = None


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
