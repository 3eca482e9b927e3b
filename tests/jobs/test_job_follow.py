"""A log whose stream breaks: nothing of it is lost, nothing is shown twice, and the job's end is its own."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import job_follow
from cluster.job_follow import LogFollower, exit_code_of, stop_job
from cluster.job_server import Job, JobServer
from cluster.leaving import LEFT
from generation.errors import UnreachableError

JOB = Job("j-1", "RUNNING", "", None, 1.0, None, {}, "psi run")
LOG = "one\ntwo\nthree: ä\n" * 5


class BrokenServer:
    """A job that ends with its streams; each stream begins at the log's start and breaks after so many characters."""

    address = "http://head:8265"

    def __init__(self, breaks: Sequence[int], lost_answers: int = 0, end_is_lost: bool = False) -> None:
        self._breaks = list(breaks)
        self._lost = lost_answers
        self._end_is_lost = end_is_lost

    def find(self, job_id: str) -> Job:
        self._answer()
        return JOB if self._breaks else replace(JOB, state="SUCCEEDED", driver_exit_code=0)

    def tail(self, job_id: str, take: Callable[[str], None]) -> None:
        text = LOG[: self._breaks.pop(0)]
        for start in range(0, len(text), 7):
            take(text[start : start + 7])

    def log(self, job_id: str) -> str:
        if self._end_is_lost:
            raise UnreachableError("no answer")
        return LOG

    def _answer(self) -> None:
        if self._lost:
            self._lost -= 1
            raise UnreachableError("no answer")


class StoppingServer(BrokenServer):
    """A job that ends once it was asked to, when it has been looked at so often; every second question is lost."""

    def __init__(self, looks: int, log: str) -> None:
        super().__init__([])
        self._looks, self._log, self._asked, self._stopped = looks, log, 0, False

    def find(self, job_id: str) -> Job:
        self._lose_every_second()
        self._looks -= self._stopped
        return JOB if self._looks > 0 else replace(JOB, state="STOPPED")

    def stop(self, job_id: str) -> None:
        self._lose_every_second()
        self._stopped = True

    def log(self, job_id: str) -> str:
        return self._log

    def _lose_every_second(self) -> None:
        self._asked += 1
        self._lost = self._asked % 2
        self._answer()


def followed(server: BrokenServer) -> tuple[str, list[str]]:
    written: list[str] = []
    said: list[str] = []
    job = LogFollower(cast(Any, server), "j-1", written.append, said.append).follow()
    assert job.state == "SUCCEEDED"
    return "".join(written), said


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_follow, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(job_follow, "_AGAIN_SECONDS", 0.0)


@given(st.lists(st.integers(0, len(LOG)), max_size=6))
def test_no_character_is_lost_or_shown_twice_wherever_the_stream_breaks(breaks: list[int]) -> None:
    assert followed(BrokenServer(breaks))[0] == LOG


def test_a_cluster_that_does_not_answer_for_a_while_is_asked_again_and_that_is_said_once() -> None:
    written, said = followed(BrokenServer([5, 9], lost_answers=4))
    assert written == LOG
    assert said == ["lost the connection to http://head:8265; trying again for 600 s"]


def test_a_cluster_that_stays_away_is_given_up_with_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_follow, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(UnreachableError, match="`psi logs j-1` follows it again"):
        followed(BrokenServer([5], lost_answers=1))


def test_a_job_that_is_over_has_its_exit_code_though_the_end_of_its_log_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job_follow, "PATIENCE_SECONDS", 0.0)
    written, said = followed(BrokenServer([5], end_is_lost=True))
    assert written == LOG[:5]
    assert said[0].startswith("the job is over, but the end of its log cannot be fetched: no answer\n")


@pytest.mark.parametrize(("log", "told"), [(f"12 rows\n{LEFT}\n", False), ("12 rows\n", True)])
def test_a_stop_outlives_a_lost_connection_and_tells_a_driver_that_was_killed_from_one_that_left(
    log: str, told: bool
) -> None:
    said: list[str] = []
    job = stop_job(cast(Any, StoppingServer(3, log)), "j-1", said.append)
    assert job.state == "STOPPED"
    assert any("its log has no word of leaving" in line for line in said) == told


@pytest.mark.parametrize(
    ("state", "driver", "code"),
    [("SUCCEEDED", 0, 0), ("FAILED", 8, 8), ("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 143)],
)
def test_the_exit_code_is_that_of_the_jobs_driver_and_stopped_is_no_success(
    state: str, driver: int | None, code: int
) -> None:
    assert exit_code_of(replace(JOB, state=state, driver_exit_code=driver)) == code


def test_a_server_that_swallows_what_it_is_asked_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from cluster import job_server

    monkeypatch.setattr(job_server, "ANSWER_SECONDS", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(UnreachableError, match="no answer in 1 s"):
            JobServer(f"127.0.0.1:{silent.getsockname()[1]}")
