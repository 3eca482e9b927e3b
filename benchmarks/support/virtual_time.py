"""An event loop whose clock jumps to the next thing to do, and a store whose writes take a time on it that they do not really take."""

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil
from pathlib import Path
from typing import Any

from generation.storage import Store


class VirtualLoop(asyncio.SelectorEventLoop):
    """Never sleeps. What is handed to a thread runs at once, and is done after `write_seconds` of its clock."""

    def __init__(self, write_seconds: float) -> None:
        self._now = 0.0
        super().__init__(_Jumping(self._jump))
        self.set_default_executor(_Later(self, write_seconds))

    def time(self) -> float:
        """Seconds since it was made."""
        return self._now

    def _jump(self, seconds: float) -> None:
        self._now += seconds


class Grid:
    """Waits on the clock of the running loop that end on multiples of a few milliseconds, so that many share a timer.

    Args:
        seconds: From one end to the next.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends: dict[int, asyncio.Future[None]] = {}

    async def after(self, seconds: float) -> None:
        """Wait so long, or a little longer."""
        loop = asyncio.get_running_loop()
        number = ceil((loop.time() + seconds) / self._seconds)
        end = self._ends.get(number)
        if end is None:
            end = self._ends[number] = loop.create_future()
            loop.call_at(number * self._seconds, lambda: self._ends.pop(number).set_result(None))
        await end


class QuickStore(Store):
    """A local folder without what makes writes durable, and slow."""

    def write_new(self, relative: str, content: bytes) -> None:
        """Write a file that must not exist yet."""
        path = Path(self.path(relative))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as stream:
            stream.write(content)


class _Jumping(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout:
            self._jump(timeout)
        return super().select(0)


class _Later(ThreadPoolExecutor):
    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        super().__init__(1)
        self._loop = loop
        self._seconds = seconds

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            self._loop.call_later(self._seconds, future.set_result, fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - belongs to whoever waits
            self._loop.call_later(self._seconds, future.set_exception, error)
        return future
