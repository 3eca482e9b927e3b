"""Questions to the coordinator, asked again until they are answered. Nothing here waits."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from random import Random
from typing import Any

from cluster.coordinator_calls import CoordinatorCalls, cause_of
from generation.errors import StorageError

ANSWER_SECONDS = 15.0
"""A call that has no answer by then is forgotten and made again; in a silent partition Ray itself would wait for about 65 s."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0
_MOST_REFUSALS = 5
"""A coordinator that cannot write so often in a row will not be asked again."""

_jitter = Random()


class Question:
    """One call to the coordinator, made again until it is answered. At most one copy of it is on its way.

    Args:
        send: Makes the call.
        woken: Called, on any thread, when there may be an answer.

    Attributes:
        answer: What came back.
    """

    def __init__(self, send: Callable[[], Future[Any]], woken: Callable[[], None]) -> None:
        self.answer: Any = None
        self._send = send
        self._woken = woken
        self._future: Future[Any] | None = None
        self._sent_at = 0.0
        self._send_at = 0.0
        self._failures = 0
        self._refusals = 0

    def look(self, now: float) -> bool:
        """Whether it is answered; makes the call where it is time to. Never waits.

        Raises:
            RunLockedError: Another driver has taken the run over.
            StorageError: The coordinator cannot write, again and again.
        """
        future = self._future
        if future is None:
            if now >= self._send_at:
                self._sent_at, self._future = now, self._send()
                self._future.add_done_callback(lambda _: self._woken())
        elif future.done():
            self._future = None
            try:
                self.answer = future.result()
            except Exception as error:  # noqa: BLE001 - raised again, unless asking again may help
                self._again(now, error)
            else:
                return True
        elif now - self._sent_at >= ANSWER_SECONDS:
            self._future = None
            future.cancel()
            self._again(now, TimeoutError())
        return False

    def forget(self) -> None:
        """The answer does not matter any more."""
        if self._future is not None:
            self._future.cancel()

    def _again(self, now: float, error: Exception) -> None:
        cause = cause_of(error)
        self._refusals = self._refusals + 1 if isinstance(cause, StorageError) else 0
        if self._refusals >= _MOST_REFUSALS or not (isinstance(cause, StorageError) or _is_silence(cause)):
            raise cause
        pause = min(_FIRST_PAUSE_SECONDS * 2**self._failures, _LONGEST_PAUSE_SECONDS)
        self._failures += 1
        # Replicas that lost the coordinator together shall not come back together.
        self._send_at = now + pause * _jitter.uniform(0.5, 1.5)


class Talk:
    """A replica's open questions. One thread uses it.

    Args:
        coordinator: Whom it asks.
        woken: Called, on any thread, when there may be an answer.

    Attributes:
        heard_at: When the coordinator last answered, on the monotonic clock.
    """

    def __init__(self, coordinator: CoordinatorCalls, woken: Callable[[], None]) -> None:
        self.heard_at = time.monotonic()
        self._coordinator = coordinator
        self._woken = woken
        self._open: list[tuple[Question, Callable[[Any], None]]] = []

    def ask(self, then: Callable[[Any], None], method: str, arguments: Callable[[], tuple[Any, ...]]) -> None:
        """Ask; `then` gets the answer, in `hear`. The arguments are made whenever the question is sent."""
        question = Question(lambda: self._coordinator.send(method, *arguments()), self._woken)
        question.look(time.monotonic())
        self._open.append((question, then))

    def hear(self) -> None:
        """Hand on what was answered, and ask again what is due.

        Raises:
            RunLockedError: Another driver has taken the run over.
            StorageError: The coordinator cannot write, again and again.
        """
        now = time.monotonic()
        for entry in list(self._open):
            question, then = entry
            if question.look(now):
                self._open.remove(entry)
                self.heard_at = now
                then(question.answer)

    def end(self) -> None:
        """Forget all questions."""
        for question, _ in self._open:
            question.forget()


def _is_silence(error: Exception) -> bool:
    """Whether an error says that nothing was heard of the coordinator, and not that it raised it."""
    from ray.exceptions import RayError, RayTaskError

    return isinstance(error, TimeoutError) or (isinstance(error, RayError) and not isinstance(error, RayTaskError))
