"""The jobs of a Ray cluster, as its dashboard serves them: calls that come to an end, and errors that say what to do."""

import asyncio
import logging
import os
import queue
import re
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from generation.errors import ClusterError, RecipeError, UnreachableError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ANSWER_SECONDS = 30.0
UPLOAD_SECONDS = 900.0
SILENT_SECONDS = 30.0
OVER = ("SUCCEEDED", "FAILED", "STOPPED")
_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
"""Ray takes an address from here, or from RAY_ADDRESS, before the one that it is given."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the cluster knows it.

    Attributes:
        job_id: Its submission id.
        state: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: What Ray says about that, which may end in the last lines of the log.
        driver_exit_code: What its command ended with, negative for a signal; None while it runs, and where it was stopped or lost.
        started: Seconds since 1970; None where it has not.
        ended: Seconds since 1970; None where it has not.
        metadata: What was noted as it was submitted.
        entrypoint: Its command.
    """

    job_id: str
    state: str
    message: str
    driver_exit_code: int | None
    started: float | None
    ended: float | None
    metadata: Mapping[str, str]
    entrypoint: str

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.state in OVER


class JobServer:
    """A cluster's dashboard. Who may ask is decided by RAY_AUTH_MODE and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.

    Args:
        address: `http://HOST:8265`, or `HOST:8265`.

    Raises:
        UnreachableError: Nothing answers there.
        ClusterError: It is no Ray cluster, or it wants another token.
    """

    def __init__(self, address: str) -> None:
        self.address = address if "://" in address else f"http://{address}"
        os.environ[_ADDRESS_VARIABLE] = self.address
        self._client: JobSubmissionClient = self._ask(_connected)

    def submit(self, entrypoint: str, job_id: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        """Hand in a job; files that `runtime_env` names go along.

        Raises:
            RecipeError: The cluster knows a job of this id.
        """

        def hand_in() -> str:
            return self._client.submit_job(
                entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env, metadata=metadata
            )

        try:
            self._ask(hand_in, UPLOAD_SECONDS)
        except ClusterError as error:
            if "already exists" in str(error):
                raise RecipeError(
                    f"there is a job {job_id} already; `psi status` lists all, and `psi logs {job_id}` follows it"
                ) from error
            raise

    def find(self, job_id: str) -> Job:
        """A job.

        Raises:
            RecipeError: The cluster knows none of this id.
        """
        return _job(self._of(job_id, self._client.get_job_info))

    def jobs(self) -> list[Job]:
        """All that were ever submitted to the cluster, the oldest first."""
        found = [_job(details) for details in self._ask(self._client.list_jobs) if details.submission_id]
        return sorted(found, key=lambda job: job.started or 0.0)

    def stop(self, job_id: str) -> None:
        """Ask a job to end: its processes get SIGTERM, and SIGKILL when the time that it was submitted with is over."""
        self._of(job_id, self._client.stop_job)

    def log(self, job_id: str) -> str:
        """All that a job has said so far."""
        return self._of(job_id, self._client.get_job_logs)

    def tail(self, job_id: str, take: Callable[[str], None]) -> None:
        """Give `take` what a job has said from its start, and what it says from now on.

        Returns when the stream ends, breaks, or is silent for half a minute: then it may be lost, and TCP does not tell.
        """

        async def tail() -> None:
            stream = self._client.tail_job_logs(job_id)
            try:
                while (text := await _next(stream)) is not None:
                    take(text)
            finally:
                await stream.aclose()  # pyright: ignore[reportAttributeAccessIssue] - a generator, as all that Ray declares iterators

        asyncio.run(tail())

    def _of(self, job_id: str, call: Callable[[str], Answer]) -> Answer:
        try:
            return self._ask(lambda: call(job_id))
        except ClusterError as error:
            if "status code 404" in str(error):
                raise RecipeError(
                    f"no job {job_id} at {self.address}; `psi status` lists those that there are"
                ) from error
            raise

    def _ask(self, call: Callable[[], Answer], seconds: float | None = None) -> Answer:
        """Call Ray's client, which waits for ever where a network swallows its packets."""
        seconds = seconds or ANSWER_SECONDS
        answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put((call(), None))
            except Exception as error:  # noqa: BLE001 - raised where it was waited for
                answers.put((None, error))

        threading.Thread(target=ask, name="job-server", daemon=True).start()
        try:
            answer, error = answers.get(timeout=seconds)
        except queue.Empty:
            raise UnreachableError(f"{self.address}: no answer in {seconds:.0f} s; {_WHERE}") from None
        if error is not None:
            raise self._explained(error) from error
        return answer

    def _explained(self, error: Exception) -> Exception:
        from ray.exceptions import AuthenticationError

        status = re.search(r"status code (\d+)", str(error))
        if isinstance(error, AuthenticationError):
            return ClusterError(f"{self.address}: {_auth_hint(str(error))}")
        if isinstance(error, ValueError) or "Version check returned 404" in str(error):
            return ClusterError(f"{self.address}: answers, but not as a Ray cluster does; {_WHERE}")
        if isinstance(error, OSError) and getattr(error, "response", None) is None:
            return UnreachableError(f"{self.address}: cannot be reached; {_WHERE}")
        if status and status[1].startswith("5"):
            return UnreachableError(f"{self.address}: {_last_line(str(error))}")
        return ClusterError(f"{self.address}: {error}") if isinstance(error, OSError | RuntimeError) else error


_WHERE = (
    "it must be the dashboard of the cluster's head, such as http://HOST:8265, and reachable from here"
    "\non Kubernetes: kubectl port-forward service/NAME-head-svc 8265, --address http://localhost:8265"
)


async def _next(stream: AsyncIterator[str]) -> str | None:
    """What a stream says next; None where it does not."""
    try:
        return await asyncio.wait_for(anext(stream), SILENT_SECONDS)
    except Exception:  # noqa: BLE001 - its end, or aiohttp's, asyncio's or Ray's trouble: whether the job lives is asked next
        return None


def _connected() -> "JobSubmissionClient":
    from ray.job_submission import JobSubmissionClient

    for module in ("dashboard_sdk", "job.sdk"):  # they tell at INFO what `psi` says in its own words
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
    return JobSubmissionClient()


def _auth_hint(said: str) -> str:
    """What to do about a refused token; the token itself is in no message."""
    given = [name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)]
    if said.startswith("Authentication failed"):
        return "the cluster takes another token than the one given here; ask for its token again"
    if given and os.environ.get("RAY_AUTH_MODE") != "token":
        return f"the cluster wants a token; {given[0]} is set, but RAY_AUTH_MODE=token is not"
    if given:
        return f"{given[0]} holds no token: the variable, or the file that it names, is empty or missing"
    return (
        "the cluster wants a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE (or RAY_AUTH_TOKEN)"
        "\non Kubernetes: kubectl get secret NAME -o jsonpath={.data.auth_token} | base64 -d > FILE"
    )


def _last_line(text: str) -> str:
    """The last line of a server's answer that says something: that of its traceback."""
    return next((line for line in reversed(text.splitlines()) if line.strip(" .")), text)


def _job(details: Any) -> Job:
    return Job(
        job_id=details.submission_id or details.job_id or "",
        state=str(getattr(details.status, "value", details.status)),
        message=details.message or "",
        driver_exit_code=details.driver_exit_code,
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        metadata=details.metadata or {},
        entrypoint=details.entrypoint or "",
    )
