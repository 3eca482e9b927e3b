"""The seam between flows and engines: requests, completions and the `Engine` protocol. Knows no engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one completion is drawn; always exactly one per request."""

    max_output_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """One user message for a model. Its text is `prefix + text`.

    Attributes:
        prefix: The part that many requests share byte for byte (a bundle); encoded once, cached by the engine.
        text: The part of this request alone.
        sampling: How to draw the completion.
        stage: What the tokens are booked under: `mine`, `probe`, `draft`, `answer`, `evaluate`.
    """

    prefix: str
    text: str
    sampling: Sampling
    stage: str


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back for one request.

    Attributes:
        text: The completion without special tokens; empty for `error`.
        finish: `stop` (the model ended), `length` (cut at `max_output_tokens`) or `error` (the engine refused this request).
        prompt_tokens: Tokens of the prompt, cached ones included.
        cached_tokens: Those of them that came from the prefix cache.
        output_tokens: Tokens that were generated.
        error: Why, for `error`.
    """

    text: str
    finish: FinishReason
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as its engine wants it: made on the flow thread, used on the engine thread.

    Attributes:
        request: The request it was made from.
        prompt_tokens: Exact for engines that encode here, an estimate (characters / 3) for remote ones.
        payload: The engine's own form (token ids, a JSON body, ...).
    """

    request: Request
    prompt_tokens: int
    payload: Any


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished request as its engine gave it, not yet decoded."""

    request_id: int
    payload: Any


@dataclass(frozen=True, slots=True)
class CanaryCounts:
    """What an engine's own statistics say, in sums over its steps, against which ours can be checked. All zero where they are off.

    Attributes:
        steps: Steps that reported.
        prompt_tokens: Looked up in the prefix cache when a request was scheduled first.
        cached_tokens: Those that it held.
        preemptions: Requests that were scheduled again, having lost their KV cache to others.
        kv_use: Sum of the share of the KV cache in use after each step.
    """

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    kv_use: float = 0.0


@dataclass(slots=True)
class EngineStats:
    """Counters since the engine started."""

    steps: int = 0
    unfinished: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    by_stage: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    """Stage to counts of `requests`, `prompt_tokens`, `cached_tokens`, `output_tokens`."""
    canary: CanaryCounts = CanaryCounts()


class Engine(Protocol):
    """What every engine does. `start`, `add`, `step`, `abort`, `close` are called on one thread, `prepare` and `decode` on another."""

    max_in_flight: int
    """How many requests keep it busy; more only wait inside it."""

    def start(self) -> None:
        """Build the engine.

        Raises:
            EngineError: The model cannot be loaded; the message says which and why.
        """
        ...

    def prepare(self, request: Request) -> Prepared:
        """Encode one request.

        Raises:
            RequestError: It can never be answered (longer than the context, empty).
        """
        ...

    def add(self, request_id: int, prepared: Prepared) -> None:
        """Queue a request under an id that is unique among the unfinished ones.

        Raises:
            RequestError: The engine refuses this request; it lives on.
        """
        ...

    def step(self) -> list[Finished]:
        """Advance, and return what finished. Never called with nothing unfinished.

        Raises:
            EngineDeadError: The engine cannot go on.
        """
        ...

    def decode(self, finished: Sequence[Finished]) -> list[Completion]:
        """Turn finished requests into completions, in bulk and in order."""
        ...

    def abort(self, request_ids: Sequence[int]) -> None:
        """Forget unfinished requests; they never finish."""
        ...

    def stats(self) -> EngineStats:
        """Counters so far."""
        ...

    def close(self) -> None:
        """Free everything; safe to call twice."""
        ...
