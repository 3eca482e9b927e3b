"""Draws the miniature's tasks and writes their seeds and evaluation sets: `python -m recipes.miniature.make_tasks`.

The tasks are compositions from the held-out pairs of `world.SPLIT`, which no pretraining document holds, in the order in which a
seeded generator draws them.
"""

import json
import random
from pathlib import Path

from recipes.miniature.world import SPLIT, SPLIT_SEED, Rule, apply, random_word

NAMES = ("kilo", "lima")
LENGTHS = ((4, 6), (5, 7))
SEEDS, EVALUATION = 40, 150
FOLDER = Path(__file__).parent


def draw_tasks() -> dict[str, Rule]:
    """Task name to the rule behind it."""
    rules = random.Random(SPLIT_SEED + 1).sample(SPLIT.held_out, len(NAMES))
    return dict(zip(NAMES, rules, strict=True))


def oracle(task: str, text: str) -> str:
    """The true answer to an input of a task: `evaluation.oracle` of the recipe."""
    return apply(draw_tasks()[task], text)


def _write(path: Path, rule: Rule, words: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"input": word, "output": apply(rule, word)}) + "\n" for word in words))


def main() -> None:
    """Write `seeds/*.jsonl` and `evaluation/*.jsonl`."""
    for (name, rule), lengths in zip(draw_tasks().items(), LENGTHS, strict=True):
        rng = random.Random(f"{SPLIT_SEED} {name}")
        words: dict[str, None] = {}
        while len(words) < SEEDS + EVALUATION:
            words[random_word(rng, *lengths)] = None
        drawn = list(words)
        _write(FOLDER / "seeds" / f"{name}.jsonl", rule, drawn[:SEEDS])
        _write(FOLDER / "evaluation" / f"{name}.jsonl", rule, drawn[SEEDS:])


if __name__ == "__main__":
    main()
