"""Following a job: its log, whatever happens to the stream of it, and its end."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from cluster.job_server import Job, JobServer
from cluster.leaving import LEFT
from generation.errors import ClusterError, RecipeError, UnreachableError

STOPPED_CODE = 143
"""What a driver that SIGTERM asked to leave ends with."""

PATIENCE_SECONDS = 600.0
_AGAIN_SECONDS = 3.0
STOP_SECONDS = 120
"""How long a driver that is asked to stop may take to commit what is under way and to leave."""

_KILL_SECONDS = 30.0
_PAUSE_SECONDS = 0.5
"""After the end of a stream, so that a dashboard that ends each at once is not asked without pause."""

Answer = TypeVar("Answer")


class LogFollower:
    """Writes what a job says, each character once, until it ends.

    Args:
        server: The cluster.
        job_id: The job.
        write: Takes the log.
        say: Takes what there is to say about following it.
    """

    def __init__(
        self, server: JobServer, job_id: str, write: Callable[[str], None], say: Callable[[str], None]
    ) -> None:
        self._server = server
        self._job_id = job_id
        self._write = write
        self._say = say
        self._written = 0

    def follow(self) -> Job:
        """Go on from where the last call was interrupted; returns the job once it is over, with all of its log written.

        Where the cluster goes away with its job, before the end of the log was fetched, that is said.

        Raises:
            UnreachableError: The cluster did not answer for ten minutes. The job may go on.
            RecipeError: The cluster does not know the job.
        """
        while not (job := self._ask(self._server.find)).is_over:
            self._stream()
        try:
            self._take(self._ask(self._server.log), 0)
        except (ClusterError, RecipeError) as error:
            self._say(f"the job is over, but the end of its log cannot be fetched: {error}")
        return job

    def _stream(self) -> None:
        """Open the log's stream, which begins at its start, and write what is new, until it ends."""
        place = 0

        def take(text: str) -> None:
            nonlocal place
            place = self._take(text, place)

        self._server.tail(self._job_id, take)
        time.sleep(_PAUSE_SECONDS)

    def _take(self, text: str, place: int) -> int:
        """Write what of a text that begins at `place` of the log has not been written; returns where it ends."""
        end = place + len(text)
        if end > self._written:
            self._write(text[max(0, self._written - place) :])
            self._written = end
        return end

    def _ask(self, ask: Callable[[str], Answer]) -> Answer:
        return _patiently(self._server, self._job_id, ask, self._say)


def _patiently(server: JobServer, job_id: str, ask: Callable[[str], Answer], say: Callable[[str], None]) -> Answer:
    """Ask about a job, again where the cluster does not answer."""
    deadline, said = time.monotonic() + PATIENCE_SECONDS, False
    while True:
        try:
            return ask(job_id)
        except UnreachableError as error:
            if time.monotonic() >= deadline:
                raise UnreachableError(
                    f"{error}\nThe job does not end with this: `psi logs {job_id}` follows it again"
                ) from error
            if not said:
                say(f"lost the connection to {server.address}; trying again for {PATIENCE_SECONDS:.0f} s")
            said = True
        time.sleep(_AGAIN_SECONDS)


def stop_job(server: JobServer, job_id: str, say: Callable[[str], None]) -> Job:
    """Ask a job to end, and wait until it has: what is under way is committed first.

    Raises:
        UnreachableError: The cluster stopped answering, or the job goes on for much longer than it was given.
        RecipeError: The cluster does not know the job.
    """
    job = _patiently(server, job_id, server.find, say)
    if job.is_over:
        return job
    _patiently(server, job_id, server.stop, say)
    say(f"asked job {job_id} to stop; what is under way is committed first, for up to {STOP_SECONDS} s")
    asked = time.monotonic()
    while not (job := _patiently(server, job_id, server.find, say)).is_over:
        if time.monotonic() > asked + STOP_SECONDS + _KILL_SECONDS:
            raise UnreachableError(f"job {job_id} is still {job.state}; look at it with `psi status {job_id}`")
        time.sleep(_PAUSE_SECONDS)
    with suppress(ClusterError, RecipeError):  # a log that cannot be fetched tells nothing
        if job.state == "STOPPED" and LEFT not in server.log(job_id):
            say(
                f"its log has no word of leaving: it had not begun, or was killed after {STOP_SECONDS} s; what is committed is kept"
            )
    return job


def exit_code_of(job: Job) -> int:
    """What `psi` ends with for a job that is over: the code of its driver; 143 where it was stopped, 1 where it was lost."""
    if job.state == "SUCCEEDED":
        return 0
    if job.state == "STOPPED":
        return STOPPED_CODE
    if job.driver_exit_code is None:
        return 1
    return job.driver_exit_code if job.driver_exit_code >= 0 else 128 - job.driver_exit_code


def ending(job: Job) -> str:
    """How a job ended, in a line or two."""
    code = exit_code_of(job)
    if job.state == "FAILED" and job.driver_exit_code is None:
        return f"job {job.job_id} FAILED before its driver could end: {job.message.strip()}"
    return f"job {job.job_id} {job.state}, exit code {code}"
