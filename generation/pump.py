"""The pump: one engine, many flows, three threads.

The flow thread decodes completions in bulk, advances flows and encodes their requests; the engine thread only adds, steps and aborts;
the writer thread delivers results, which may block on storage. There is no batch barrier: whenever a request ends, the next one that
any flow asks takes its place. The engine never waits for storage: behind a slow writer the flow thread starts no new flows, and what
runs drains.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import replace
from functools import partial

from generation.board import Board
from generation.engines.base import Engine, EngineStats, Finished
from generation.errors import EngineDeadError
from generation.flows import FlowCall, FlowResult
from generation.pump_threads import EngineThread, Refused, WriterThread
from generation.spent import Spent
from generation.time_book import Shortage, TimeBook
from generation.work import Ask, Work

_BACKLOG_PER_REQUEST = 4
"""Undelivered results per request in flight at which no new flows are started."""


class Pump:
    """Runs flows of any number of works over one engine. Its methods may be called on any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._board = Board(engine)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._arrived: list[Finished] = []
        self._refused: list[Refused] = []
        self._dead: Exception | None = None
        self._stopped = False
        self._works: tuple[Work, ...] = ()
        book = TimeBook(engine.max_in_flight, self._shortage)
        self._engine_thread = EngineThread(engine, self._on_ended, self._on_death, book)
        self._writer = WriterThread(_BACKLOG_PER_REQUEST * engine.max_in_flight, self.wake)
        self._flow_thread = threading.Thread(target=self._run, name="psi-flows", daemon=True)

    def start(self) -> None:
        """Start to build the engine; flows may be attached at once."""
        self._engine_thread.start()
        self._flow_thread.start()
        self._writer.start()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the engine is built.

        Raises:
            EngineError: It cannot be built.
            TimeoutError: It was not built in `timeout` seconds.
        """
        self._engine_thread.ready.result(timeout)

    def ask(self, calls: Sequence[FlowCall], token_budget: int | None = None) -> list[FlowResult]:
        """Run flows to their ends; results come in the order of the calls.

        Before a request is made, its prompt and longest possible completion are reserved from the budget; where that would exceed it even
        with nothing else in flight, its flow gets a `BudgetError`.

        Raises:
            EngineDeadError: The engine died before all had ended.
        """
        work = Ask(calls, token_budget)
        self.attach(work)
        try:
            return work.results()
        finally:
            self.detach(work)

    def attach(self, work: Work) -> None:
        """Start to pull flows from `work`."""
        self._inbox.put(partial(self._attach, work))

    def detach(self, work: Work) -> None:
        """Drop `work`: its open flows never end."""
        self._inbox.put(partial(self._detach, work))

    def drop(self, work: Work, unwanted: Callable[[str], bool]) -> None:
        """Drop the flows of `work` with unwanted keys: those that are open never end; of others, results may still be delivered."""
        self._inbox.put(partial(self._drop, work, unwanted))

    def wake(self) -> None:
        """A work has new calls."""
        self._inbox.put(_nothing)

    def write(self, work: Work, action: Callable[[], None]) -> None:
        """Run `action` on the writer thread after all deliveries so far; an error there fails `work`."""
        self._writer.put(work, action)

    def stats(self) -> EngineStats:
        """The engine's counters; `steps` that stand still with requests unfinished mean that it hangs."""
        # The engine counts after each step: one that hangs in its first would look idle for ever.
        return replace(self._engine.stats(), unfinished=self._engine_thread.num_unfinished)

    def spent(self) -> Spent:
        """Where the engine's time went, and the tokens that came of it."""
        stats, seconds = self._engine.stats(), self._engine_thread.book.seconds()
        return Spent(
            boot_seconds=seconds["boot_seconds"],
            starved_seconds=seconds["starved_seconds"],
            busy_seconds=seconds["busy_seconds"],
            sink_stalled_seconds=seconds["sink_stalled_seconds"],
            tail_seconds=seconds["tail_seconds"],
            steps=stats.steps,
            prompt_tokens=stats.prompt_tokens,
            cached_tokens=stats.cached_tokens,
            output_tokens=stats.output_tokens,
            canary_steps=stats.canary.steps,
            canary_prompt_tokens=stats.canary.prompt_tokens,
            canary_cached_tokens=stats.canary.cached_tokens,
            canary_preemptions=stats.canary.preemptions,
            canary_kv_use=stats.canary.kv_use,
        )

    def stop(self) -> None:
        """Close the engine; flows that are open fail."""
        self._inbox.put(self._stop)
        self._flow_thread.join()
        self._engine_thread.stop()
        self._writer.stop()

    def _on_ended(self, finished: Sequence[Finished], refused: Sequence[Refused]) -> None:
        self._inbox.put(partial(self._take, finished, refused))

    def _on_death(self, error: Exception) -> None:
        self._inbox.put(partial(self._die, error))

    def _run(self) -> None:
        futures.wait([self._engine_thread.ready])  # a failure comes through `_on_death`
        while not self._stopped:
            self._inbox.get()()
            while not self._inbox.empty():
                self._inbox.get()()
            if self._dead is None:
                self._turn()

    def _turn(self) -> None:
        try:
            arrived, self._arrived = self._arrived, []
            refused, self._refused = self._refused, []
            self._board.arrive(arrived, refused)
            asked = self._board.fill(may_start=self._writer.has_room)
        except Exception as error:  # noqa: BLE001 - without the flow thread nothing would ever end
            self._die(EngineDeadError(f"flow thread: {type(error).__name__}: {error}"))
            return
        if asked:
            self._engine_thread.add(asked)
        if ended := self._board.take_ended():
            self._writer.deliver(ended)

    def _take(self, finished: Sequence[Finished], refused: Sequence[Refused]) -> None:
        self._arrived += finished
        self._refused += refused

    def _attach(self, work: Work) -> None:
        if self._dead is not None:
            self._writer.put(work, partial(work.fail, self._dead))
        else:
            self._board.attach(work)
            self._works = (*self._works, work)

    def _shortage(self) -> Shortage:
        if not self._writer.has_room:
            return "sink_stalled"
        works = self._works
        return "tail" if works and not any(work.more_may_come for work in works) else "starved"

    def _detach(self, work: Work) -> None:
        self._works = tuple(one for one in self._works if one is not work)
        ids = self._board.detach(work)
        if ids:
            self._engine_thread.abort(ids)

    def _drop(self, work: Work, unwanted: Callable[[str], bool]) -> None:
        ids = self._board.drop(work, unwanted)
        if ids:
            self._engine_thread.abort(ids)

    def _die(self, error: Exception) -> None:
        self._dead = error
        for work in self._board.works:
            self._writer.put(work, partial(work.fail, error))

    def _stop(self) -> None:
        self._die(EngineDeadError("the engine was stopped"))
        self._stopped = True


def _nothing() -> None:
    pass
