"""Splitting an ask over replicas: chunks of calls, shares of a token budget, and what becomes of both when a replica dies. No Ray."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from generation.errors import BudgetError
from generation.flows import FlowCall, FlowResult

_CHUNKS_PER_REPLICA = 4
_LEAST_CHUNK, _MOST_CHUNK = 16, 1024
_BUDGET_CHUNK = 8


@dataclass(frozen=True, slots=True)
class Chunk:
    """Calls for one replica.

    Attributes:
        numbers: Places of the calls in the whole ask.
        calls: The calls.
        budget: Tokens that they may use together, or None.
    """

    numbers: tuple[int, ...]
    calls: list[FlowCall]
    budget: int | None


class Asking:
    """The state of one ask. Its budget is never exceeded: a chunk that is lost with its replica counts as if it had used its whole share.

    Args:
        calls: All calls.
        token_budget: Tokens that they may use together, or None.
        replicas: Over how many replicas they are spread.
    """

    def __init__(self, calls: Sequence[FlowCall], token_budget: int | None, replicas: int) -> None:
        self._calls = list(calls)
        self._left = token_budget
        size = len(calls) if replicas == 1 else max(_LEAST_CHUNK, -(-len(calls) // (_CHUNKS_PER_REPLICA * replicas)))
        self._size = min(size, _MOST_CHUNK) if token_budget is None else _BUDGET_CHUNK
        self._waiting = deque(range(len(calls)))
        self._open = 0
        self._results: dict[int, FlowResult] = {}
        self._retried = False

    @property
    def done(self) -> bool:
        """Whether every call has a result."""
        return not self._waiting and not self._open

    @property
    def num_results(self) -> int:
        """Calls that have one."""
        return len(self._results)

    def next_chunk(self) -> Chunk | None:
        """Calls to send to a replica that has room for them."""
        if not self._waiting:
            return None
        budget, size = self._left, len(self._waiting) if self._retried else self._size
        numbers = tuple(self._waiting.popleft() for _ in range(min(size, len(self._waiting))))
        if budget is not None and self._left is not None:
            budget = budget * len(numbers) // (len(numbers) + len(self._waiting))
            self._left -= budget
        self._open += 1
        return Chunk(numbers, [self._calls[number] for number in numbers], budget)

    def finish(self, chunk: Chunk, results: Sequence[FlowResult]) -> None:
        """A chunk came back; what it left of its share is free for others, and for one more try of those that had too little."""
        self._open -= 1
        self._results.update(zip(chunk.numbers, results, strict=True))
        if chunk.budget is None or self._left is None:
            return
        self._left += chunk.budget - sum(result.prompt_tokens + result.output_tokens for result in results)
        short = [n for n, result in sorted(self._results.items()) if isinstance(result.error, BudgetError)]
        if self.done and short and not self._retried:
            self._retried = True
            self._waiting.extend(short)

    def lose(self, chunk: Chunk) -> None:
        """A chunk's replica died; its calls go to another."""
        self._open -= 1
        self._waiting.extendleft(reversed(chunk.numbers))

    def results(self) -> list[FlowResult]:
        """All results, in the order of the calls."""
        return [self._results[number] for number in range(len(self._calls))]
