"""Group commit: many callers wait together for one durable write."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

Line = dict[str, Any]


class GroupCommit:
    """Gathers lines while a write is under way, or for a moment where none is, and writes them as one segment.

    After a failed write every later call fails with the same error: what is on storage is then not known any more.

    Args:
        write: Writes a segment durably; called in a thread, once at a time.
        written: Called in the event loop with the lines of each segment that was written, before the next write begins.
        seconds: How long lines are gathered where no write is under way.
    """

    def __init__(
        self, write: Callable[[Sequence[Line]], None], written: Callable[[Sequence[Line]], None], seconds: float
    ) -> None:
        self._write = write
        self._written = written
        self._seconds = seconds
        self._lines: list[Line] = []
        self._gathering: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._error: Exception | None = None

    async def append(self, lines: Sequence[Line]) -> None:
        """Returns when these lines, and all that were appended before them, are durable.

        Raises:
            Exception: Whatever `write` raised, now or before.
        """
        self._lines.extend(lines)
        if self._gathering is None:
            self._gathering = asyncio.create_task(self._flush())
        await asyncio.shield(self._gathering)

    async def _flush(self) -> None:
        if not self._one_at_a_time.locked():
            await asyncio.sleep(self._seconds)
        async with self._one_at_a_time:
            lines, self._lines, self._gathering = self._lines, [], None
            if self._error:
                raise self._error
            if not lines:
                return
            try:
                await asyncio.to_thread(self._write, lines)
            except Exception as error:
                self._error = error
                raise
            self._written(lines)
