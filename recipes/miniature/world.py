"""The miniature world: 14 string functions, their compositions up to three, and which of them pretraining may see.

It owns the formal language, the split into seen and held-out compositions, and the seeded draw of the recipe's tasks. It knows
nothing about documents, models, tokenizers or PSI itself; the tests use `apply` as oracle.
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

LETTERS = "abcdefghij"
Rule = tuple[str, ...]

MAX_WORD_LETTERS = 7
HELD_OUT_PAIRS = 20
SPLIT_SEED = 20251122
TASK_NAMES = ("kilo", "lima", "mike", "november", "oscar", "papa", "quebec", "romeo")


def _shift(word: str, step: int) -> str:
    return "".join(LETTERS[(LETTERS.index(letter) + step) % len(LETTERS)] for letter in word)


FUNCTIONS: dict[str, Callable[[str], str]] = {
    "reverse": lambda word: word[::-1],
    "sort": lambda word: "".join(sorted(word)),
    "sort down": lambda word: "".join(sorted(word, reverse=True)),
    "swap ends": lambda word: word[-1] + word[1:-1] + word[0] if len(word) > 1 else word,
    "shift up": lambda word: _shift(word, 1),
    "shift down": lambda word: _shift(word, -1),
    "double last": lambda word: word + word[-1:],
    "double first": lambda word: word[:1] + word,
    "drop first": lambda word: word[1:],
    "drop last": lambda word: word[:-1],
    "rotate left": lambda word: word[1:] + word[:1],
    "rotate right": lambda word: word[-1:] + word[:-1],
    "swap pairs": lambda word: "".join(word[i + 1 : i + 2] + word[i] for i in range(0, len(word), 2)),
    "no repeats": lambda word: "".join(dict.fromkeys(word)),
}


def trace(rule: Rule, word: str) -> list[str]:
    """The word after each function of `rule`, in order; the last one is the answer."""
    steps: list[str] = []
    for name in rule:
        word = FUNCTIONS[name](word)
        steps.append(word)
    return steps


def apply(rule: Rule, word: str) -> str:
    """The oracle: what `rule` makes of `word`."""
    return trace(rule, word)[-1]


def parse_rule(text: str) -> Rule | None:
    """`"sort; reverse"` as a rule, or None where a name is unknown."""
    names = tuple(part.strip() for part in text.split(";"))
    return names if all(name in FUNCTIONS for name in names) else None


def random_word(rng: random.Random, low: int, high: int) -> str:
    """A word of `low` to `high` letters."""
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(low, high)))


@dataclass(frozen=True)
class Split:
    """Which compositions pretraining sees, and which pairs it never sees, not even inside a triple."""

    singles: tuple[Rule, ...]
    pairs: tuple[Rule, ...]
    triples: tuple[Rule, ...]
    held_out: tuple[Rule, ...]


def meaning(rule: Rule) -> tuple[str, ...]:
    """What `rule` makes of 64 probe words: equal for rules that compute the same."""
    probe = random.Random(1)
    return tuple(apply(rule, random_word(probe, 4, MAX_WORD_LETTERS)) for _ in range(64))


def draw_split() -> Split:
    """The seeded split. A held-out pair computes something that no seen single or pair computes.

    `sort; reverse` equals `sort down`, so it can never be held out; `drop first; shift up` equals `shift up; drop first`,
    so both orders are held out together or not at all.
    """
    singles = [(name,) for name in FUNCTIONS]
    pairs = [(a, b) for a, b in itertools.permutations(FUNCTIONS, 2)]
    by_meaning: dict[tuple[str, ...], list[Rule]] = {}
    for rule in [*singles, *pairs]:
        by_meaning.setdefault(meaning(rule), []).append(rule)
    identity = tuple(meaning(("reverse", "reverse")))
    candidates = [group for sign, group in by_meaning.items() if sign != identity and all(len(r) == 2 for r in group)]
    random.Random(SPLIT_SEED).shuffle(candidates)
    held: list[Rule] = []
    while len(held) < HELD_OUT_PAIRS:
        held.extend(candidates.pop())
    hidden = set(held)
    seen_pairs = [pair for pair in pairs if pair not in hidden]
    triples = [
        (*pair, name)
        for pair in seen_pairs
        for name in FUNCTIONS
        if name != pair[-1] and (pair[-1], name) not in hidden
    ]
    return Split(tuple(singles), tuple(seen_pairs), tuple(triples), tuple(held))


SPLIT = draw_split()


def _unseen_triples(split: Split) -> list[Rule]:
    """The triples that hold a held-out pair and compute what no seen rule computes."""
    hidden = set(split.held_out)
    seen = {meaning(rule) for rule in (*split.singles, *split.pairs, *split.triples)}
    triples = [
        (a, b, c) for a, b, c in itertools.product(FUNCTIONS, repeat=3) if a != b != c and {(a, b), (b, c)} & hidden
    ]
    return [rule for rule in triples if meaning(rule) not in seen]


def draw_tasks(split: Split) -> dict[str, Rule]:
    """The recipe's tasks: a seeded draw of four held-out pairs and of four triples that pretraining cannot have seen either."""
    rng = random.Random(SPLIT_SEED + 1)
    half = len(TASK_NAMES) // 2
    rules = rng.sample(split.held_out, half) + rng.sample(_unseen_triples(split), half)
    return dict(zip(TASK_NAMES, rules, strict=True))


TASKS: dict[str, Rule] = draw_tasks(SPLIT)


def oracle(task: str, text: str) -> str:
    """The true answer to an input of a task: `evaluation.oracle` of the recipe."""
    return apply(TASKS[task], text)
