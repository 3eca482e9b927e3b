"""Something that is done again and again beside a block of work."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def repeating(act: Callable[[], None], seconds: float, name: str) -> Generator[None]:
    """Call `act` every so many seconds in a thread of that name while the block runs; it has returned for the last time when the block ends."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(seconds):
            act()

    follower = threading.Thread(target=follow, name=name, daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
