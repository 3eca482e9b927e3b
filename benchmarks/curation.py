"""How fast the causal fold judges rows of 50-word inputs, and what it holds in memory for each.

One input in ten is an earlier one with one word changed, so that near duplicates are found. The other side is the same fold of the
same rows with `near_duplicate` off, which drops exact duplicates alone.
"""

import argparse
import json
import random
import time
import tracemalloc
from collections.abc import Sequence

from generation.config import AnswerConfig, CurationConfig, TaskConfig
from generation.curation.fold import CausalFold
from generation.curation.quotas import Quotas
from generation.rows import Row, row_id
from generation.task import Seed, Task

_VOCABULARY = 5_000
_SEEDS = 200
_ROWS_PER_UNIT = 128
_WITH = CurationConfig()
_WITHOUT = CurationConfig(near_duplicate=None)


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=6_000)
    parser.add_argument("--words", type=int, default=50, help="words of an input")
    parser.add_argument("--rounds", type=int, default=3, help="how often both sides take their turn")
    options = parser.parse_args()
    rows, task = make_rows(options.rows, options.words), make_task(options.words)
    seconds = {"with": 0.0, "without": 0.0}
    kept = 0
    for _ in range(options.rounds):
        spent, kept = timed_fold(_WITH, task, rows)
        seconds["with"] += spent
        seconds["without"] += timed_fold(_WITHOUT, task, rows)[0]
    with_bytes, without_bytes = (held_bytes(config, task, rows) / len(rows) for config in (_WITH, _WITHOUT))
    figures = {
        "benchmark": "curation",
        "rows": options.rows,
        "words": options.words,
        "kept": kept,
        "rows_per_second": round(options.rounds * options.rows / seconds["with"]),
        "bytes_per_row_near_duplicates": round(with_bytes - without_bytes),
        "bytes_per_row_keys": round(without_bytes),
        "ratio": round(seconds["without"] / seconds["with"], 3),
        "ratio_to": "rows per second of the same fold with near_duplicate off",
    }
    print(json.dumps(figures))


def make_task(words: int) -> Task:
    """A task with seeds as long as the inputs, which every row is compared with."""
    texts = _texts(_SEEDS, words, random.Random(1))
    config = TaskConfig(name="t", description="Count.", answer=AnswerConfig(kind="number"), seeds="none")
    return Task(config, tuple(Seed(str(i), text, "1", "", "mine") for i, text in enumerate(texts)))


def make_rows(count: int, words: int) -> list[Row]:
    """Instances in plan order."""
    rng = random.Random(0)
    texts = _texts(count, words, rng)
    for place in range(1, count):
        if rng.random() < 0.1:
            copied = texts[rng.randrange(place)].split()
            copied[0] = f"changed{place}"
            texts[place] = " ".join(copied)
    return [_row(place, text) for place, text in enumerate(texts)]


def timed_fold(config: CurationConfig, task: Task, rows: Sequence[Row]) -> tuple[float, int]:
    """Seconds of one fold, and the rows that it kept."""
    fold = CausalFold(config, task, (), Quotas(len(rows)))
    started = time.perf_counter()
    fold.fold(rows)
    return time.perf_counter() - started, fold.kept


def held_bytes(config: CurationConfig, task: Task, rows: Sequence[Row]) -> int:
    """What a fold holds once it has seen the rows, beyond what it holds before."""
    fold = CausalFold(config, task, (), Quotas(len(rows)))
    tracemalloc.start()
    for row in rows:
        fold.fold([row])
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return held


def _texts(count: int, words: int, rng: random.Random) -> list[str]:
    return [" ".join(f"w{rng.randrange(_VOCABULARY)}" for _ in range(words)) for _ in range(count)]


def _row(place: int, text: str) -> Row:
    unit, index = f"{0:06d}-{place // _ROWS_PER_UNIT:06d}", place % _ROWS_PER_UNIT
    return Row(row_id("benchmark", unit, index), unit, index, "t", "instance", input=text, answer="1", rationale="1")


if __name__ == "__main__":
    main()
