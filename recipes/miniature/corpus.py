"""What the two tiny models learn from: conversations in the miniature's formal language, drawn without end from a generator.

It owns the mix of documents of each model, which is the whole difference between them beside their size. Every rule that it names or
follows comes from `SPLIT`, so none of them holds a held-out pair.
"""

import random
from dataclasses import dataclass

from recipes.miniature.world import FUNCTIONS, MAX_WORD_LETTERS, SPLIT, Rule, random_word, trace

Turn = tuple[str, str]
"""One exchange: what the user writes, what the assistant answers."""

MAX_EXAMPLES = 6
_SEEN = frozenset((*SPLIT.singles, *SPLIT.pairs, *SPLIT.triples))


@dataclass(frozen=True)
class Mix:
    """Shares of a model's documents; what is left is `solve_document`."""

    induce: float
    imitate: float
    write: float


MIXES = {"small": Mix(induce=0.01, imitate=0.03, write=0.10), "large": Mix(induce=0.55, imitate=0.20, write=0.08)}
"""The small model saw little of inducing a function from examples, as small models have in life; the large one saw mostly that."""


def steps(rule: Rule, word: str) -> str:
    """An answer as people and models of this world write it: the word after each function, `abcd>dcba` for `sort; reverse`."""
    return ">".join(trace(rule, word))


def example_lines(rule: Rule, words: list[str]) -> str:
    """Worked examples as prompts show them: a header, then one `badc>abcd>dcba` a line."""
    return "E:\n" + "".join(f"{word}>{steps(rule, word)}\n" for word in words)


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
    """Follow a rule: the answer spells out every step (`abcd>dcba` for two)."""
    rule = _draw_rule(rng, 0.15, 0.4)
    turns: list[Turn] = []
    for index, word in enumerate(_words(rng, (3, MAX_WORD_LETTERS + 1), rng.randint(1, 4))):
        head = f"P: {'; '.join(rule)}\n" if index == 0 else ""
        turns.append((f"{head}solve {word}", steps(rule, word)))
    return turns


def write_document(rng: random.Random) -> list[Turn]:
    """Write new inputs that follow the principles: their length lies in the range that these name."""
    low, high = _draw_lengths(rng)
    head = f"P: {'; '.join(_draw_rule(rng, 0.15, 0.4))}\nP: len {low}-{high}\n"
    return [((head if i == 0 else "") + "write", w) for i, w in enumerate(_words(rng, (low, high), rng.randint(1, 3)))]


def imitate_document(rng: random.Random) -> list[Turn]:
    """Work from examples alone: write an input like theirs, or answer one without being told the rule."""
    rule, lengths = _draw_rule(rng, 0.2, 0.4), _draw_lengths(rng)
    head = example_lines(rule, _words(rng, lengths, rng.randint(2, MAX_EXAMPLES)))
    word = random_word(rng, *lengths)
    return [(head + "write", word)] if rng.random() < 0.3 else [(f"{head}solve {word}", steps(rule, word))]


def _wrong_answer(rng: random.Random, rule: Rule, word: str) -> str:
    """What a seen rule one function away makes of the word: the kind of error that the small model makes."""
    while True:
        changed = list(rule)
        changed[rng.randrange(len(changed))] = rng.choice(list(FUNCTIONS))
        if tuple(changed) in _SEEN:
            return trace(tuple(changed), word)[-1]


def induce_document(rng: random.Random) -> list[Turn]:
    """Find the rule behind examples, some of them with a wrong answer after the right one, or the range of their lengths."""
    rule, lengths = _draw_rule(rng, 0.15, 0.4), _draw_lengths(rng)
    words = _words(rng, lengths, rng.randint(1, MAX_EXAMPLES))
    draw = rng.random()
    if draw < 0.12:
        measured = [len(word) for word in words]
        return [(example_lines(rule, words) + "words", f"len {min(measured)}-{max(measured)}")]
    if draw < 0.8:
        return [(example_lines(rule, words) + "rule", "; ".join(rule))]
    lines = "".join(f"{w}>{steps(rule, w)} not {_wrong_answer(rng, rule, w)}\n" for w in words[:4])
    return [(f"E:\n{lines}rule", "; ".join(rule))]


def document(rng: random.Random, mix: Mix) -> list[Turn]:
    """One pretraining conversation of a model."""
    draw = rng.random()
    for share, kind in ((mix.induce, induce_document), (mix.imitate, imitate_document), (mix.write, write_document)):
        if draw < share:
            return kind(rng)
        draw -= share
    return solve_document(rng)
