"""Work: flows that share one engine with other flows. What a pump pulls from and delivers to."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol

from generation.flows import FlowCall, FlowResult


class Work(Protocol):
    """A source of flows and the sink of their results."""

    token_budget: int | None
    """Prompt plus output tokens that its requests may use together; None: no bound."""

    @property
    def more_may_come(self) -> bool:
        """Whether it may get flows that it does not have yet. Where not, an engine that is short of work is in its tail."""
        ...

    def next_call(self) -> FlowCall | None:
        """The next flow to start, or None where there is none now. On the flow thread; never blocks."""
        ...

    def deliver(self, result: FlowResult) -> None:
        """A flow ended. On the writer thread; may block on storage."""
        ...

    def fail(self, error: Exception) -> None:
        """No more results will come: the engine died, or `deliver` raised. On any thread, perhaps more than once."""
        ...


class Ask:
    """Work that is a list of calls, with a result for each."""

    more_may_come = False

    def __init__(self, calls: Sequence[FlowCall], token_budget: int | None = None) -> None:
        self.token_budget = token_budget
        self._calls = iter([FlowCall(str(i), call.function, call.arguments) for i, call in enumerate(calls)])
        self._keys = [call.key for call in calls]
        self._results: dict[int, FlowResult] = {}
        self._done: Future[None] = Future()
        if not calls:
            self._done.set_result(None)

    def next_call(self) -> FlowCall | None:
        """The next call, under its number: keys of an ask need not be unique."""
        return next(self._calls, None)

    def deliver(self, result: FlowResult) -> None:
        """Keep a result."""
        self._results[int(result.key)] = result
        if len(self._results) == len(self._keys) and not self._done.done():
            self._done.set_result(None)

    def fail(self, error: Exception) -> None:
        """Let `results` raise this error."""
        if not self._done.done():
            self._done.set_exception(error)

    def results(self) -> list[FlowResult]:
        """Wait for all results, in the order of the calls.

        Raises:
            EngineDeadError: The engine died before.
        """
        self._done.result()
        return [replace(self._results[i], key=key) for i, key in enumerate(self._keys)]
