"""Functions that start at the same moment."""

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def at_once(works: list[Callable[[], Result]]) -> list[Result]:
    """Their results, in order."""
    results, start = dict[int, Result](), threading.Barrier(len(works))

    def run(number: int) -> None:
        start.wait()
        results[number] = works[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[number] for number in range(len(works))]
