"""Which flow asks what next: the state of a pump, without its threads.

The board keeps the engine's in-flight requests at a target, admits requests against token budgets, and starts new flows only when the
ones that run do not fill the engine.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from generation.engines.base import Completion, Engine, Finished, Prepared, Request
from generation.errors import BudgetError, RequestError
from generation.flows import FlowPool, FlowResult
from generation.work import Work

_LEAST_MARGIN = 8


@dataclass(slots=True, eq=False)
class _Account:
    work: Work
    spent: int = 0
    reserved: int = 0
    held: deque[tuple[int, Prepared]] = field(default_factory=deque[tuple[int, Prepared]])
    """Requests that wait until others settle, because together they might exceed the budget."""


@dataclass(slots=True)
class _Admitted:
    account: _Account
    reserved: int


class Board:
    """Not thread-safe: the flow thread owns it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # A quarter more than the engine runs at once: enough to refill it while completions travel, little enough to stay fresh.
        self._target = engine.max_in_flight + max(_LEAST_MARGIN, engine.max_in_flight // 4)
        self._pool = FlowPool()
        self._accounts: deque[_Account] = deque()
        self._waiting: deque[tuple[_Account, int, Request]] = deque()
        self._in_flight: dict[int, _Admitted] = {}
        self._to_engine: list[tuple[int, Prepared]] = []

    @property
    def works(self) -> list[Work]:
        """All that is attached."""
        return [account.work for account in self._accounts]

    def attach(self, work: Work) -> None:
        """Start to pull flows from `work`."""
        self._accounts.append(_Account(work))

    def detach(self, work: Work) -> list[int]:
        """Drop `work` and its open flows; returns the requests that the engine should abort."""
        account = next((one for one in self._accounts if one.work is work), None)
        if account is None:
            return []
        self._accounts.remove(account)
        return self._forget(account, lambda _: True)

    def drop(self, work: Work, unwanted: Callable[[str], bool]) -> list[int]:
        """Drop the open flows of `work` with unwanted keys; returns the requests that the engine should abort."""
        account = next((one for one in self._accounts if one.work is work), None)
        if account is None:
            return []
        return self._forget(account, unwanted)

    def arrive(self, finished: Sequence[Finished], refused: Sequence[tuple[int, str]]) -> None:
        """Requests came back from the engine: decode them, and hand them to their flows."""
        known = [one for one in finished if one.request_id in self._in_flight]
        answers = [(one.request_id, answer) for one, answer in zip(known, self._engine.decode(known), strict=True)]
        answers += [
            (request_id, Completion("", "error", error=error))
            for request_id, error in refused
            if request_id in self._in_flight
        ]
        for request_id, completion in answers:
            admitted = self._in_flight.pop(request_id)
            admitted.account.reserved -= admitted.reserved
            admitted.account.spent += completion.prompt_tokens + completion.output_tokens
            self._wait(admitted.account, self._pool.answer(request_id, completion))
            if admitted.account.held:
                self._readmit(admitted.account)

    def fill(self, *, may_start: bool) -> list[tuple[int, Prepared]]:
        """Requests for the engine, up to the target; starts flows where `may_start` and those that run do not ask enough."""
        while len(self._in_flight) < self._target:
            if self._waiting:
                self._admit(*self._waiting.popleft())
            elif not may_start or not self._start_flow():
                break
        asked, self._to_engine = self._to_engine, []
        return asked

    def take_ended(self) -> list[tuple[Work, FlowResult]]:
        """Flows that ended since the last call."""
        return [(account.work, result) for account, result in self._pool.take_ended()]

    def _forget(self, account: _Account, unwanted: Callable[[str], bool]) -> list[int]:
        ids = set(self._pool.requests_of(account, unwanted))
        self._pool.forget(ids)
        self._waiting = deque(entry for entry in self._waiting if entry[1] not in ids)
        self._to_engine = [entry for entry in self._to_engine if entry[0] not in ids]
        account.held = deque(entry for entry in account.held if entry[0] not in ids)
        admitted = {request_id: self._in_flight.pop(request_id) for request_id in ids & self._in_flight.keys()}
        account.reserved -= sum(one.reserved for one in admitted.values())
        return list(admitted)

    def _start_flow(self) -> bool:
        for _ in range(len(self._accounts)):
            account = self._accounts[0]
            self._accounts.rotate(-1)
            call = None if account.held else account.work.next_call()
            if call is not None:
                self._wait(account, self._pool.start(call, account))
                return True
        return False

    def _admit(self, account: _Account, request_id: int, request: Request) -> None:
        try:
            prepared = self._engine.prepare(request)
        except RequestError as error:
            self._wait(account, self._pool.answer(request_id, Completion("", "error", error=str(error))))
            return
        account.held.append((request_id, prepared))
        self._readmit(account)

    def _readmit(self, account: _Account) -> None:
        """Send held requests while the budget covers the worst case; raise in their flow once nothing in flight can free any."""
        budget = account.work.token_budget
        while account.held:
            request_id, prepared = account.held[0]
            need = prepared.prompt_tokens + prepared.request.sampling.max_output_tokens
            if budget is not None and account.spent + account.reserved + need > budget:
                if account.reserved:
                    return
                account.held.popleft()
                error = BudgetError(f"{account.spent} of {budget} tokens are used, the next request may need {need}")
                self._wait(account, self._pool.fail(request_id, error))
                continue
            account.held.popleft()
            account.reserved += need
            self._in_flight[request_id] = _Admitted(account, need)
            self._to_engine.append((request_id, prepared))

    def _wait(self, account: _Account, asked: Sequence[tuple[int, Request]]) -> None:
        self._waiting.extend([(account, request_id, request) for request_id, request in asked])
