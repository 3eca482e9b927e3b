"""Where an engine's time goes: each second of its life in one place."""

import threading
import time
from collections.abc import Callable
from typing import Literal

Shortage = Literal["starved", "sink_stalled", "tail"]
"""Why an engine has less to do than it could: see `generation.spent.Spent`."""


_PLACES = ("boot", "starved", "busy", "sink_stalled", "tail")


class TimeBook:
    """Books the time between two turns under what the engine did. One clock reading a step.

    Args:
        full: Requests that the engine can hold.
        shortage: Why it has less; asked on the engine thread and on those that call `seconds`.
        clock: Seconds.
    """

    def __init__(
        self, full: int, shortage: Callable[[], Shortage], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._full = full
        self._shortage = shortage
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = dict.fromkeys(_PLACES, 0.0)
        self._unfinished: int | None = None
        self._place = "boot"
        self._since: float | None = None

    def begin(self) -> None:
        """The engine is about to be built."""
        with self._lock:
            self._since = self._clock()

    def turn(self, unfinished: int) -> None:
        """From now on it works on so many requests, or waits for some."""
        with self._lock:
            self._book()
            self._unfinished = unfinished
            self._place = self._placed()

    def end(self) -> None:
        """It is over."""
        with self._lock:
            self._book()
            self._since = None

    def seconds(self) -> dict[str, float]:
        """`<place>_seconds` up to now: together the engine's age."""
        with self._lock:
            self._book()
            self._place = self._placed()
            return {f"{place}_seconds": seconds for place, seconds in self._seconds.items()}

    def _book(self) -> None:
        if self._since is not None:
            now = self._clock()
            self._seconds[self._place] += now - self._since
            self._since = now

    def _placed(self) -> str:
        if self._unfinished is None:
            return "boot"
        if self._unfinished >= self._full:
            return "busy"
        why = self._shortage()
        return "busy" if self._unfinished and why == "starved" else why
