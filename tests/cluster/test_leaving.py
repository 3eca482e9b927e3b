import os
import signal
import time
from dataclasses import replace

import pytest

from cluster.generate import generate_arm
from cluster.leaving import Leaving
from generation.errors import PreemptedError
from generation.manifest import replay
from tests.cluster import fake_replicas as fake


class TerminatedPool(fake.FakePool):
    """Sends the driver SIGTERM again and again, as soon as a unit is under way."""

    def __init__(self, write: fake.Write, begun: set[str]) -> None:
        super().__init__(write)
        self._begun = begun

    def tend(self, coordinator) -> None:
        super().tend(coordinator)
        if self._begun:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_driver_that_is_asked_to_leave_commits_every_unit_that_is_under_way(tmp_path):
    begun: set[str] = set()
    quick = fake.write_some(0.5)

    def write(plan, record):
        begun.add(plan.unit)
        time.sleep(0.02)
        return quick(plan, record)

    leaving = Leaving()
    run = replace(fake.arm_run(tmp_path, generation={"accepted_rows": 1_000_000}), leaving=leaving)
    pool = TerminatedPool(write, begun)
    with leaving.heeded(), pytest.raises(PreemptedError, match="the same command goes on"):
        generate_arm(run, lambda: pool, lambda _: None, fake.local_coordinator)
    assert begun
    assert set(replay(run.store).state.places) == begun


def test_work_that_does_not_look_ends_where_it_stands_and_only_once():
    cleaned: list[bool] = []

    def work(leaving: Leaving) -> None:
        with leaving.heeded():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # the second one disturbs nothing
                cleaned.append(True)

    with pytest.raises(PreemptedError):
        work(Leaving())
    assert cleaned


def test_control_c_stays_what_it_is():
    with pytest.raises(KeyboardInterrupt), Leaving().heeded():
        raise KeyboardInterrupt


def test_work_in_its_own_time_is_told_at_once_and_ended_at_its_end():
    heard: list[str] = []

    def work(leaving: Leaving) -> None:
        with leaving.heeded(), leaving.in_own_time(lambda: heard.append("told")):
            os.kill(os.getpid(), signal.SIGTERM)
            heard.append("worked on")

    with pytest.raises(PreemptedError):
        work(Leaving())
    assert heard == ["told", "worked on"]
