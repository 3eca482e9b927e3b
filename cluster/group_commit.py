"""Group commit: many callers wait together for one durable write."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from generation.manifest_state import Entry

Line = dict[str, Any]


class GroupCommit:
    """Gathers entries while a write is under way, or for a moment where none is, and writes them as one segment.

    After a failed write every later call fails with the same error: what is on storage is then not known any more.

    Args:
        write: Writes entries durably as one segment, and returns it; called in a thread, once at a time.
        written: Called in the event loop with each segment that was written, before the next write begins.
        seconds: How long entries are gathered where no write is under way.
    """

    def __init__(
        self, write: Callable[[Sequence[Entry]], Line], written: Callable[[Line], None], seconds: float
    ) -> None:
        self._write = write
        self._written = written
        self._seconds = seconds
        self._entries: list[Entry] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._gathering: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._error: Exception | None = None

    def append(self, entries: Sequence[Entry]) -> asyncio.Future[None]:
        """Is done when these entries, and all that were appended before them, are durable, or with what `write` raised, now or before."""
        self._entries.extend(entries)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if self._gathering is None:
            self._gathering = asyncio.create_task(self._flush())
        return waiter

    async def _flush(self) -> None:
        if not self._one_at_a_time.locked():
            await asyncio.sleep(self._seconds)
        async with self._one_at_a_time:
            entries, waiters = self._entries, self._waiters
            self._entries, self._waiters, self._gathering = [], [], None
            if entries and not self._error:
                try:
                    self._written(await asyncio.to_thread(self._write, entries))
                except Exception as error:  # noqa: BLE001 - belongs to whoever waits
                    self._error = error
            for waiter in waiters:
                if waiter.done():  # who waited was cancelled
                    continue
                if self._error:
                    waiter.set_exception(self._error)
                else:
                    waiter.set_result(None)
