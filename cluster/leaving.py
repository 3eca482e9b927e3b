"""A driver that is asked to leave: by SIGTERM, which `psi stop`, Ray, Kubernetes and Slurm send before they kill."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

from generation.errors import PreemptedError

LEFT = "asked to leave; what is committed is kept, and the same command goes on from there"
"""The last word of a driver that did."""


class Leaving:
    """Whether this process was asked to leave, and how the work under way ends then.

    Work that can end well does so `in_own_time`. All other work ends where it stands, as with Ctrl-C: what is in the run folder by
    then is whole, the rest is done again.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._tell: Callable[[], None] | None = None

    def asked(self) -> bool:
        """Whether it was."""
        return self._asked.is_set()

    @contextmanager
    def heeded(self) -> Generator[None]:
        """Take SIGTERM while the block runs; on the main thread.

        Raises:
            PreemptedError: The block was ended by it.
        """
        before = signal.signal(signal.SIGTERM, self._on_term)
        try:
            yield
        except KeyboardInterrupt:
            if not self.asked():
                raise
            raise _left() from None
        finally:
            signal.signal(signal.SIGTERM, before)

    @contextmanager
    def in_own_time(self, tell: Callable[[], None] = lambda: None) -> Generator[None]:
        """A block that looks at `asked` itself, and is given the time to end.

        Args:
            tell: Called on the main thread as soon as this process is asked.

        Raises:
            PreemptedError: It was asked, and the block has ended.
        """
        self._tell = tell
        try:
            yield
        finally:
            self._tell = None
        if self.asked():
            raise _left()

    def _on_term(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked():
            return  # what holds things is giving them back
        self._asked.set()
        if self._tell is None:
            raise KeyboardInterrupt  # the one exception, beside SystemExit, that gets out of a call into Ray
        self._tell()


def _left() -> PreemptedError:
    return PreemptedError(LEFT)
