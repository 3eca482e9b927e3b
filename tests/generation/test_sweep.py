import hashlib
from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.errors import RunLockedError
from generation.instances.plan import unit_id
from generation.manifest import replay, take_over
from generation.manifest_state import Shard
from generation.storage import Store
from generation.sweep import ROWS_FOLDER, Swept, sweep_rows


def put(store: Store, name: str) -> Shard:
    """A shard of one unit, as it is committed; the unit's number is the last letter's."""
    content = name.encode() * 100
    file = f"{ROWS_FOLDER}/{name}"
    store.write_new(file, content)
    units = ((unit_id(0, ord(name[-1])), 0, 1),)
    return Shard(file, hashlib.sha256(content).hexdigest(), len(content), units, {}, {}, {})


def test_what_is_not_visible_is_removed_and_counted(tmp_path):
    store = Store(str(tmp_path))
    writer, _ = take_over(store)
    writer.append([put(store, "won-a")])
    writer.append([put(store, "late-a")])
    put(store, "died-b")
    (tmp_path / ROWS_FOLDER / ".shard.arrow.0123456789abcdef").write_bytes(b"half")
    assert sweep_rows(store, lambda: None) == Swept(3, 600 + 600 + 4)
    assert [*store.sizes(ROWS_FOLDER)] == ["won-a"]
    assert sweep_rows(store, lambda: None) == Swept()


def test_nothing_is_removed_of_a_run_that_another_driver_has_taken_over(tmp_path):
    store = Store(str(tmp_path))
    put(store, "orphan-a")

    def confirm() -> None:
        raise RunLockedError("taken over")

    with pytest.raises(RunLockedError):
        sweep_rows(store, confirm)
    assert [*store.sizes(ROWS_FOLDER)] == ["orphan-a"]


def test_a_coordinator_that_still_lives_cannot_commit_what_is_swept(tmp_path):
    store = Store(str(tmp_path))
    writer, _ = take_over(store)
    line = put(store, "slow-a")
    sweep_rows(store, lambda: None)
    with pytest.raises(RunLockedError):
        writer.append([line])
    assert not replay(store).state.places


class Others:
    """Drivers, coordinators and replicas that go on with some of their steps whenever the sweeper sleeps."""

    def __init__(self, store: Store, rounds: list[list[str]]) -> None:
        self.store, self.rounds, self.shards = store, rounds, 0
        self.writers, self.waiting = [take_over(store)[0]], []

    def go_on(self) -> None:
        for step in self.rounds.pop(0) if self.rounds else ():
            getattr(self, step)()

    def put(self) -> None:
        self.shards += 1
        self.waiting.append((self.writers[-1], put(self.store, chr(96 + self.shards))))

    def succeed(self) -> None:
        self.writers.append(take_over(self.store)[0])

    def commit(self) -> None:
        if self.waiting:
            writer, line = self.waiting.pop()
            with suppress(RunLockedError):
                writer.append([line])


@dataclass(frozen=True)
class SleepyStore(Store):
    others: Others | None = None

    def sizes(self, folder: str) -> dict[str, int]:
        if folder == ROWS_FOLDER:
            self.others.go_on()
        return super().sizes(folder)

    def delete(self, relative: str) -> None:
        self.others.go_on()
        super().delete(relative)


steps = st.sampled_from(["put", "commit", "succeed"])


@settings(max_examples=80, deadline=None)
@given(rounds=st.lists(st.lists(steps, max_size=5), min_size=2, max_size=4))
def test_wherever_a_sweeper_sleeps_and_whoever_goes_on_no_visible_shard_is_removed(tmp_path_factory, rounds):
    store = Store(str(tmp_path_factory.mktemp("run")))
    others = Others(store, rounds)
    with suppress(RunLockedError):
        sweep_rows(SleepyStore(store.uri, others=others), others.go_on)
    while others.rounds:
        others.go_on()
    visible = set(replay(store).state.shards)
    assert visible <= {f"{ROWS_FOLDER}/{name}" for name in store.sizes(ROWS_FOLDER)}
