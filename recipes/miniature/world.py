"""The miniature world: 14 string functions, their compositions, and the documents two tiny models learn from.

It owns the formal language and the split into compositions that pretraining may see and compositions that it may not. It knows
nothing about models, tokenizers or PSI itself: `pretrain.py` trains on what `document` yields, and the tests use `apply` as oracle.
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

LETTERS = "abcdefghij"
Rule = tuple[str, ...]
Turn = tuple[str, str]
"""One exchange: what the user writes, what the assistant answers."""

MAX_WORD_LETTERS = 7
HELD_OUT_PAIRS = 30
SPLIT_SEED = 20251122


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


def _signature(rule: Rule) -> tuple[str, ...]:
    probe = random.Random(1)
    return tuple(apply(rule, random_word(probe, 4, MAX_WORD_LETTERS)) for _ in range(64))


def draw_split() -> Split:
    """The seeded split. A held-out pair computes something that no seen single, pair or shorter rule computes.

    `sort; reverse` equals `sort down`, so it can never be held out; `drop first; shift up` equals `shift up; drop first`,
    so both orders are held out together or not at all.
    """
    singles = [(name,) for name in FUNCTIONS]
    pairs = [(a, b) for a, b in itertools.permutations(FUNCTIONS, 2)]
    by_meaning: dict[tuple[str, ...], list[Rule]] = {}
    for rule in [*singles, *pairs]:
        by_meaning.setdefault(_signature(rule), []).append(rule)
    identity = tuple(_signature(("reverse", "reverse")))
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

TASKS: dict[str, Rule] = dict(
    zip(("kilo", "lima"), random.Random(SPLIT_SEED + 1).sample(SPLIT.held_out, 2), strict=True)
)
"""The recipe's tasks: the first draws of a seeded generator from the held-out pairs."""


def oracle(task: str, text: str) -> str:
    """The true answer to an input of a task: `evaluation.oracle` of the recipe."""
    return apply(TASKS[task], text)


def example_lines(rule: Rule, words: list[str]) -> str:
    """Worked examples as prompts show them: a header, then one `input>output` a line."""
    return "E:\n" + "".join(f"{word}>{apply(rule, word)}\n" for word in words)


def _draw_rule(rng: random.Random, single: float, pair: float) -> Rule:
    draw = rng.random()
    pool = SPLIT.singles if draw < single else SPLIT.pairs if draw < single + pair else SPLIT.triples
    return rng.choice(pool)


def _draw_lengths(rng: random.Random) -> tuple[int, int]:
    low = rng.randint(4, MAX_WORD_LETTERS)
    return low, rng.randint(low, MAX_WORD_LETTERS)


def _words(rng: random.Random, lengths: tuple[int, int], count: int) -> list[str]:
    return [random_word(rng, *lengths) for _ in range(count)]


def solve_document(rng: random.Random) -> list[Turn]:
    """Follow a rule: the answer spells out every step (`badc>abcd>dcba` for two steps after the input)."""
    rule = _draw_rule(rng, 0.25, 0.5)
    turns: list[Turn] = []
    for index, word in enumerate(_words(rng, (3, MAX_WORD_LETTERS + 1), rng.randint(1, 4))):
        head = f"P: {'; '.join(rule)}\n" if index == 0 else ""
        turns.append((f"{head}solve {word}", ">".join(trace(rule, word))))
    return turns


def write_document(rng: random.Random) -> list[Turn]:
    """Write a new input that follows the principles: its length lies in the range that they name."""
    lengths = _draw_lengths(rng)
    rule = "; ".join(_draw_rule(rng, 0.25, 0.5))
    head = f"P: {rule}\nP: len {lengths[0]}-{lengths[1]}\n"
    return [((head if i == 0 else "") + "write", w) for i, w in enumerate(_words(rng, lengths, rng.randint(1, 3)))]


def imitate_document(rng: random.Random) -> list[Turn]:
    """Work from examples alone: write an input like theirs, or answer one without being told the rule."""
    rule, lengths = _draw_rule(rng, 0.3, 0.6), _draw_lengths(rng)
    head = example_lines(rule, _words(rng, lengths, rng.randint(2, 8)))
    word = random_word(rng, *lengths)
    if rng.random() < 0.4:
        return [(head + "write", word)]
    return [(f"{head}solve {word}", apply(rule, word))]


def _wrong_answer(rng: random.Random, rule: Rule, word: str) -> str:
    """What a rule one function away makes of the word: the kind of error that the small model makes."""
    changed = list(rule)
    changed[rng.randrange(len(changed))] = rng.choice(list(FUNCTIONS))
    return apply(tuple(changed), word)


def induce_document(rng: random.Random) -> list[Turn]:
    """Find the rule behind examples, some of them with a wrong answer beside the right one, or the range of lengths."""
    rule, lengths = _draw_rule(rng, 0.2, 0.7), _draw_lengths(rng)
    words = _words(rng, lengths, rng.randint(2, 8))
    if rng.random() < 0.12:
        measured = [len(word) for word in words]
        return [(example_lines(rule, words) + "words", f"len {min(measured)}-{max(measured)}")]
    if rng.random() < 0.75:
        return [(example_lines(rule, words) + "rule", "; ".join(rule))]
    lines = "".join(f"{w}>{apply(rule, w)} not {_wrong_answer(rng, rule, w)}\n" for w in words[:4])
    return [(f"E:\n{lines}rule", "; ".join(rule))]


def document(rng: random.Random, large: bool) -> list[Turn]:
    """One pretraining conversation.

    The small model spends 5 % of its documents on examples without a rule, as small models see little of inducing a function; the
    large one spends most of its documents on finding the rule.
    """
    draw = rng.random()
    if large and draw < 0.78:
        return induce_document(rng)
    draw = (draw - 0.78) / 0.22 if large else draw
    if draw < 0.05:
        return imitate_document(rng)
    return write_document(rng) if draw < 0.15 else solve_document(rng)
