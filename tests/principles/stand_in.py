"""Flows driven by a function instead of an engine, for the tests of everything that asks a model."""

from collections.abc import Callable
from dataclasses import dataclass, field

from generation.engines.base import Completion, Request
from generation.flows import FlowCall, FlowPool, FlowResult

Reply = Callable[[Request], str | Completion]


@dataclass
class LocalPool:
    """Answers every request by `reply`; keeps what it was asked."""

    reply: Reply
    asked: list[Request] = field(default_factory=list)
    budgets: list[int | None] = field(default_factory=list)

    def ask(self, calls: list[FlowCall], token_budget: int | None = None) -> list[FlowResult]:
        self.budgets.append(token_budget)
        pool = FlowPool()
        queue = [asked for call in calls for asked in pool.start(call)]
        while queue:
            request_id, request = queue.pop(0)
            self.asked.append(request)
            queue += pool.answer(request_id, self._completion(request))
        return [result for _, result in pool.take_ended()]

    def _completion(self, request: Request) -> Completion:
        reply = self.reply(request)
        if isinstance(reply, Completion):
            return reply
        return Completion(reply, "stop", prompt_tokens=len(request.prefix + request.text), output_tokens=len(reply))
