"""The engine thread and the writer thread of a pump. They know queues and callables, not flows."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from generation.engines.base import Engine, Finished, Prepared
from generation.errors import EngineDeadError, RequestError
from generation.flows import FlowResult
from generation.time_book import TimeBook
from generation.work import Work

_log = logging.getLogger(__name__)

Refused = tuple[int, str]
"""A request that the engine did not take, and why."""


class EngineThread:
    """Builds an engine and does nothing but add, step and abort. It never waits for anything but work.

    Attributes:
        ready: Done once the engine is built; raises what building it raised.
        book: Is told what the engine does.
    """

    def __init__(
        self,
        engine: Engine,
        on_ended: Callable[[Sequence[Finished], Sequence[Refused]], None],
        on_death: Callable[[Exception], None],
        book: TimeBook,
    ) -> None:
        self.book = book
        self.ready: Future[None] = Future()
        self._engine = engine
        self._on_ended = on_ended
        self._on_death = on_death
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._unfinished: set[int] = set()
        self._refused: list[Refused] = []
        self._thread = threading.Thread(target=self._run, name="psi-engine", daemon=True)

    @property
    def num_unfinished(self) -> int:
        """Requests in the engine's hands."""
        return len(self._unfinished)

    def start(self) -> None:
        """Start to build the engine."""
        self.book.begin()
        self._thread.start()

    def add(self, requests: Sequence[tuple[int, Prepared]]) -> None:
        """Queue requests."""
        self._commands.put(lambda: self._add(requests))

    def abort(self, request_ids: Sequence[int]) -> None:
        """Forget requests."""
        self._commands.put(lambda: self._abort(request_ids))

    def stop(self) -> None:
        """Close the engine and end."""
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._engine.start()
            self.ready.set_result(None)
            self._loop()
        except Exception as error:  # noqa: BLE001 - whatever it was, this engine is over and all must hear of it
            if not self.ready.done():
                self.ready.set_exception(error)
            dead = error if isinstance(error, EngineDeadError) else EngineDeadError(f"{type(error).__name__}: {error}")
            self._on_death(dead)
        finally:
            self._close()
            self.book.end()

    def _loop(self) -> None:
        self.book.turn(0)
        while self._take_commands():
            self.book.turn(len(self._unfinished))
            refused, self._refused = self._refused, []
            finished = self._engine.step() if self._unfinished else []
            self._unfinished.difference_update(one.request_id for one in finished)
            if finished or refused:
                self._on_ended(finished, refused)
            if not self._unfinished:
                self.book.turn(0)

    def _take_commands(self) -> bool:
        """Run what was queued; waits for the first only while the engine has nothing to do. False: stop."""
        idle = not self._unfinished
        while True:
            try:
                command = self._commands.get(block=idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            idle = False

    def _add(self, requests: Sequence[tuple[int, Prepared]]) -> None:
        for request_id, prepared in requests:
            try:
                self._engine.add(request_id, prepared)
            except RequestError as error:
                self._refused.append((request_id, str(error)))
            else:
                self._unfinished.add(request_id)

    def _abort(self, request_ids: Sequence[int]) -> None:
        known = self._unfinished.intersection(request_ids)
        self._unfinished -= known
        if known:
            self._engine.abort(sorted(known))

    def _close(self) -> None:
        try:
            self._engine.close()
        except Exception:  # noqa: BLE001 - it is over anyway
            _log.exception("closing the engine failed")


class WriterThread:
    """Runs what may block on storage, in order. An error there fails the work that it was for, and nothing else."""

    def __init__(self, room: int, on_room: Callable[[], None]) -> None:
        self._room = room
        self._on_room = on_room
        self._queue: queue.SimpleQueue[Sequence[tuple[Work, Callable[[], None]]] | None] = queue.SimpleQueue()
        self._given = self._delivered = 0
        self._thread = threading.Thread(target=self._run, name="psi-writer", daemon=True)

    @property
    def has_room(self) -> bool:
        """Whether the backlog is short enough for new flows; those that run may always end."""
        return self._given - self._delivered < self._room

    def start(self) -> None:
        """Start to write."""
        self._thread.start()

    def put(self, work: Work, action: Callable[[], None]) -> None:
        """Run `action` for `work` after all that was put before."""
        self._queue.put([(work, action)])

    def deliver(self, ended: Sequence[tuple[Work, FlowResult]]) -> None:
        """Deliver results to their works, after all that was put before. On the flow thread alone, which counts them."""
        self._given += len(ended)
        self._queue.put([(work, partial(self._deliver, work, result)) for work, result in ended])

    def stop(self) -> None:
        """End after all that was put before."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while (items := self._queue.get()) is not None:
            for work, action in items:
                try:
                    action()
                except Exception as error:  # noqa: BLE001 - the work's owner decides; the thread goes on for the others
                    work.fail(error)

    def _deliver(self, work: Work, result: FlowResult) -> None:
        self._delivered += 1
        if self._given - self._delivered == self._room - 1:
            self._on_room()
        work.deliver(result)
