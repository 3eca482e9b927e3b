"""Writes the seeds and evaluation sets of the miniature's tasks: `python -m recipes.miniature.make_tasks`.

It owns the form of a row and the seeded draw of a task's words; which rules are tasks is decided in `world`.
"""

import itertools
import json
import random
from pathlib import Path

from recipes.miniature.world import MAX_WORD_LETTERS, SPLIT_SEED, TASKS, Rule, random_word, trace

Row = dict[str, str]

SEEDS, EVALUATION = 40, 100
SHORTEST_WORD = 4
LENGTHS = tuple(itertools.combinations(range(SHORTEST_WORD, MAX_WORD_LETTERS + 1), 2))
"""The ranges that the length of a task's words may have, in letters: (4, 5) to (6, 7)."""
FOLDER = Path(__file__).parent


def draw_rows(rule: Rule, key: str) -> tuple[list[Row], list[Row]]:
    """(seeds, evaluation rows) of a task: its range of lengths and its words follow from `key` alone, and no word stands there twice.

    `input` is a word, `steps` the whole worked answer as the models of this world write it, `output` the last of the steps. A word of
    which nothing is left (`no repeats; drop first` on `aaaa`) is not asked.
    """
    rng = random.Random(f"{SPLIT_SEED} {key}")
    lengths = rng.choice(LENGTHS)
    rows: dict[str, Row] = {}
    while len(rows) < SEEDS + EVALUATION:
        word = random_word(rng, *lengths)
        steps = trace(rule, word)
        if steps[-1]:
            rows[word] = {"input": word, "steps": ">".join(steps), "output": steps[-1]}
    drawn = list(rows.values())
    return drawn[:SEEDS], drawn[SEEDS:]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Write `seeds/*.jsonl` and `evaluation/*.jsonl`, and remove those of tasks that are no more."""
    for part in ("seeds", "evaluation"):
        for path in FOLDER.glob(f"{part}/*.jsonl"):
            path.unlink()
    for name, rule in TASKS.items():
        seeds, evaluation = draw_rows(rule, name)
        write_rows(FOLDER / f"seeds/{name}.jsonl", seeds)
        write_rows(FOLDER / f"evaluation/{name}.jsonl", evaluation)


if __name__ == "__main__":
    main()
