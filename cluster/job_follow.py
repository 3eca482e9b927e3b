"""Following a job: its log, whatever happens to the stream of it, and its end."""

import time
from collections.abc import Callable
from typing import TypeVar

from cluster.job_server import Job, JobServer
from generation.errors import UnreachableError

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

        Raises:
            UnreachableError: The cluster did not answer for ten minutes. The job may go on.
            RecipeError: The cluster does not know the job.
        """
        while not (job := self._patiently(self._server.find)).is_over:
            self._stream()
        log = self._patiently(self._server.log)
        self._take(log, 0)
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

    def _patiently(self, ask: Callable[[str], Answer]) -> Answer:
        """Ask about the job, again where the cluster does not answer."""
        deadline, said = time.monotonic() + PATIENCE_SECONDS, False
        while True:
            try:
                return ask(self._job_id)
            except UnreachableError as error:
                if time.monotonic() >= deadline:
                    raise UnreachableError(
                        f"{error}\nThe job may go on without being followed: `psi logs {self._job_id}` follows it again"
                    ) from error
                if not said:
                    self._say(
                        f"lost the connection to {self._server.address}; trying again for {PATIENCE_SECONDS:.0f} s"
                    )
                said = True
            time.sleep(_AGAIN_SECONDS)


def stop_job(server: JobServer, job_id: str, say: Callable[[str], None]) -> Job:
    """Ask a job to end, and wait until it has: what is under way is committed first.

    Raises:
        UnreachableError: The cluster stopped answering, or the job goes on for much longer than it was given.
        RecipeError: The cluster does not know the job.
    """
    job = server.find(job_id)
    if job.is_over:
        return job
    server.stop(job_id)
    say(f"asked job {job_id} to stop; what is under way is committed first, for up to {STOP_SECONDS} s")
    deadline = time.monotonic() + STOP_SECONDS + _KILL_SECONDS
    while not (job := server.find(job_id)).is_over:
        if time.monotonic() > deadline:
            raise UnreachableError(f"job {job_id} is still {job.state}; look at it with `psi status {job_id}`")
        time.sleep(_PAUSE_SECONDS)
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
