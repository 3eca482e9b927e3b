"""Writes the seeds and evaluation sets of the miniature's tasks: `python -m recipes.miniature.make_tasks`."""

import json
import random
from pathlib import Path

from recipes.miniature.world import SPLIT_SEED, TASKS, Rule, apply, random_word

LENGTHS = ((4, 6), (5, 7))
SEEDS, EVALUATION = 40, 150
FOLDER = Path(__file__).parent


def _write(path: Path, rule: Rule, words: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"input": word, "output": apply(rule, word)}) + "\n" for word in words))


def main() -> None:
    """Write `seeds/*.jsonl` and `evaluation/*.jsonl`."""
    for (name, rule), lengths in zip(TASKS.items(), LENGTHS, strict=True):
        rng = random.Random(f"{SPLIT_SEED} {name}")
        words: dict[str, None] = {}
        while len(words) < SEEDS + EVALUATION:
            words[random_word(rng, *lengths)] = None
        drawn = list(words)
        _write(FOLDER / "seeds" / f"{name}.jsonl", rule, drawn[:SEEDS])
        _write(FOLDER / "evaluation" / f"{name}.jsonl", rule, drawn[SEEDS:])


if __name__ == "__main__":
    main()
