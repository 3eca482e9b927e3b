"""Who a run in a bucket belongs to, where many want it at the same moment and requests fail."""

from collections import deque
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.lock import DriverLock
from generation.errors import RunLockedError
from generation.manifest import replay, take_over
from generation.manifest_state import Shard
from generation.retry import Patience
from generation.storage import Store
from tests.bucket.proxy import FAULTS, Proxy
from tests.bucket.threads import at_once

_numbers = count()
faults_of_requests = st.lists(st.none() | st.sampled_from(FAULTS[:5]), max_size=10)
several_times = settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def hasty(uri: str) -> Store:
    return Store(uri, Patience(60.0, sleep=lambda seconds: None)).child(f"claimed-{next(_numbers)}")


@several_times
@given(drivers=st.integers(2, 6), faults=faults_of_requests)
def test_of_drivers_that_start_at_the_same_moment_exactly_one_has_the_run(
    proxy: Proxy, uri: str, drivers: int, faults: list[str | None]
):
    store, locks = hasty(uri), list[DriverLock]()
    proxy.faults = deque(faults)

    def enter() -> str:
        lock = DriverLock(store)
        try:
            lock.__enter__()
        except RunLockedError as error:
            return str(error)
        locks.append(lock)
        return ""

    refusals = at_once([enter] * drivers)
    proxy.faults.clear()
    assert refusals.count("") == 1
    assert all("driven by process" in refusal for refusal in refusals if refusal)
    (lock,) = locks
    lock.confirm()
    lock.__exit__(None, None, None)
    with DriverLock(store), pytest.raises(RunLockedError, match="another driver has taken this run over"):
        lock.confirm()


@several_times
@given(writers=st.integers(2, 4), faults=faults_of_requests)
def test_what_any_of_several_writers_was_told_is_written_is_visible_and_nothing_else(
    proxy: Proxy, uri: str, writers: int, faults: list[str | None]
):
    store, acknowledged, incarnations = hasty(uri), set[str](), list[int]()
    proxy.faults = deque(faults)

    def write(number: int) -> None:
        try:
            writer, _ = take_over(store)
            incarnations.append(writer.incarnation)
            for unit in range(2):
                file = f"rows/{number}-{unit}"
                writer.append([Shard(file, "0" * 64, 1, ((f"{number:06d}-{unit:06d}", 0, 1),), {}, {}, {})])
                acknowledged.add(file)
        except RunLockedError:
            pass

    at_once([lambda number=number: write(number) for number in range(writers)])
    proxy.faults.clear()
    assert len(set(incarnations)) == len(incarnations)
    state = replay(store).state
    visible = {place.file for place in state.places.values()}
    assert acknowledged <= visible
    assert visible == {place.file for place in take_over(store)[1].places.values()}


def test_a_segment_costs_the_same_few_requests_however_many_there_are(proxy: Proxy, uri: str):
    writer, _ = take_over(Store(uri))
    costs = []
    for number in range(8):
        proxy.asked.clear()
        writer.append([Shard(f"rows/{number}", "0" * 64, 1, ((f"{number:06d}-000000", 0, 1),), {}, {}, {})])
        costs.append(dict(proxy.kinds()))
    # The look for a successor is of its claim alone: whether there is such an object, and, as there is none, such a folder.
    assert costs == [{"PUT": 1, "HEAD": 1, "LIST": 1}] * 8
