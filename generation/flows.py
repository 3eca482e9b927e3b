"""Flows: generator functions that yield requests and receive completions, and the pool that drives thousands of them at once.

A flow yields one `Request` (a `Completion` comes back) or a list of them (a list comes back, in order), and returns its result. It
knows nothing of threads, engines or Ray; neither does the pool, which only moves values between flows and whoever owns an engine.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from generation.engines.base import Completion, Request
from generation.engines.tally import COUNTS, count_request

Flow = Generator[Request | Sequence[Request], Any, Any]
"""`Flow` returns its result through `StopIteration.value`."""


@dataclass(frozen=True)
class FlowCall:
    """A flow that has not started: what travels between processes.

    Attributes:
        key: Names the flow among its peers; comes back with the result.
        function: A module-level generator function (pickled by reference).
        arguments: Its positional arguments.
    """

    key: str
    function: Callable[..., Flow]
    arguments: tuple[Any, ...] = ()

    def start(self) -> Flow:
        """The running generator."""
        return self.function(*self.arguments)


@dataclass(frozen=True, slots=True)
class FlowResult:
    """How a flow ended: with a value, or with an error that its function raised.

    Attributes:
        key: The key of its `FlowCall`.
        value: What it returned; None after an error.
        error: What it raised, or None.
        requests: Requests that it made.
        prompt_tokens: Prompt tokens of them, cached ones included.
        cached_tokens: Those from the prefix cache.
        output_tokens: Tokens generated for it.
        by_stage: Stage to counts of `requests`, `prompt_tokens`, `cached_tokens`, `output_tokens`: the four above, split.
    """

    key: str
    value: Any
    error: Exception | None = None
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    by_stage: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])


@dataclass(slots=True)
class _Running:
    key: str
    owner: Any
    flow: Flow
    as_list: bool = False
    waiting: int = 0
    answers: list[Completion | None] = field(default_factory=list[Completion | None])
    error: Exception | None = None
    by_stage: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])


class FlowPool:
    """Drives many flows: `start`, `answer` and `fail` return the requests that are to be made next, `take_ended` what ended.

    Request ids are unique within the pool. Not thread-safe: one thread owns it.
    """

    def __init__(self) -> None:
        self._next_id = 0
        self._by_request: dict[int, tuple[_Running, int, str]] = {}
        self._ended: list[tuple[Any, FlowResult]] = []

    def start(self, call: FlowCall, owner: Any = None) -> list[tuple[int, Request]]:
        """Start a flow of an owner; returns its first requests with their ids."""
        try:
            flow = call.start()
        except Exception as error:  # noqa: BLE001 - arguments that do not fit are this flow's error
            self._ended.append((owner, FlowResult(call.key, None, error)))
            return []
        return self._advance(_Running(call.key, owner, flow), None)

    def answer(self, request_id: int, completion: Completion) -> list[tuple[int, Request]]:
        """Hand a completion to its flow; returns the requests that the flow makes next."""
        running, index, stage = self._by_request.pop(request_id)
        count_request(
            running.by_stage, stage, completion.prompt_tokens, completion.cached_tokens, completion.output_tokens
        )
        running.answers[index] = completion
        return self._answered(running)

    def fail(self, request_id: int, error: Exception) -> list[tuple[int, Request]]:
        """Raise an error inside the flow that made a request, once its other open requests are answered."""
        running, _, _ = self._by_request.pop(request_id)
        running.error = error
        return self._answered(running)

    def requests_of(self, owner: Any, wanted: Callable[[str], bool]) -> list[int]:
        """Open requests of the flows of an owner whose keys are wanted."""
        open_flows = [(request_id, running) for request_id, (running, _, _) in self._by_request.items()]
        return [request_id for request_id, flow in open_flows if flow.owner is owner and wanted(flow.key)]

    def forget(self, request_ids: Iterable[int]) -> None:
        """Drop requests and with them their flows, which never end. All open requests of a flow go together."""
        for request_id in request_ids:
            self._by_request.pop(request_id)

    def take_ended(self) -> list[tuple[Any, FlowResult]]:
        """Owner and result of the flows that ended since the last call, in order."""
        ended, self._ended = self._ended, []
        return ended

    def _answered(self, running: _Running) -> list[tuple[int, Request]]:
        running.waiting -= 1
        if running.waiting:
            return []
        answers = running.answers
        return self._advance(running, answers if running.as_list else answers[0])

    def _advance(self, running: _Running, value: Any) -> list[tuple[int, Request]]:
        while True:
            raised, running.error = running.error, None
            try:
                wanted = running.flow.send(value) if raised is None else running.flow.throw(raised)
            except StopIteration as stop:
                self._finish(running, stop.value, None)
                return []
            except Exception as error:  # noqa: BLE001 - one flow's error is its result, not the pool's end
                self._finish(running, None, error)
                return []
            if isinstance(wanted, Request):
                return self._ask(running, [wanted], as_list=False)
            if wanted:
                return self._ask(running, wanted, as_list=True)
            value = []

    def _ask(self, running: _Running, wanted: Sequence[Request], *, as_list: bool) -> list[tuple[int, Request]]:
        running.as_list, running.waiting, running.answers = as_list, len(wanted), [None] * len(wanted)
        asked: list[tuple[int, Request]] = []
        for index, request in enumerate(wanted):
            self._by_request[self._next_id] = (running, index, request.stage)
            asked.append((self._next_id, request))
            self._next_id += 1
        return asked

    def _finish(self, running: _Running, value: Any, error: Exception | None) -> None:
        by_stage = running.by_stage
        requests, prompt, cached, output = [sum([counts[name] for counts in by_stage.values()]) for name in COUNTS]
        result = FlowResult(running.key, value, error, requests, prompt, cached, output, by_stage)
        self._ended.append((running.owner, result))
