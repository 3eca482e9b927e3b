"""Finds drafts that take over what is particular to a demonstration: its names, its objects, its wording. No list of words is kept by hand."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from generation.curation.filters import special_tokens, token_set
from generation.curation.text import read_input
from generation.instances.plan import Bundle
from generation.task import Task

TOKEN_LENIENCE = 10
"""Names and numbers are judged at so many times the chance of words: one of them is often all that a leak leaves."""


@dataclass(frozen=True, slots=True)
class DemoLeak:
    """The blacklist of one bundle.

    Attributes:
        tokens: Names and odd numbers that the demonstrations in its draft prompt hold and nothing else does.
        token_mean: How many of them an input written without these demonstrations is expected to hold.
        rare: Their words that the task hardly uses otherwise: at most one other seed has them, and nothing else in the prompt.
        rate: Share of the words of an input written without these demonstrations that are among them, as seen in the other seeds.
        chance: A draft is dropped when inputs of that rate would hold as many rare words less often than this, or as many of `tokens`
            less often than `TOKEN_LENIENCE` times this.
    """

    tokens: frozenset[str]
    token_mean: float
    rare: frozenset[str]
    rate: float
    chance: float

    def reason(self, draft: str) -> str | None:
        """Why a draft counts as leaked, if it does."""
        held = len(token_set(draft) & self.tokens)
        if held and _at_least(held, self.token_mean) < TOKEN_LENIENCE * self.chance:
            return "holds a name or number of a demonstration"
        words = set(read_input(draft).words)
        repeated = len(words & self.rare)
        if repeated and _at_least(repeated, self.rate * len(words)) < self.chance:
            return "repeats rare words of the demonstrations"
        return None


def find_demo_leak(task: Task, bundle: Bundle, chance: float) -> DemoLeak:
    """The blacklist of a bundle, from all seeds of its task.

    With few seeds the rate is not known to be low, so many words must be repeated: of 20 short inputs, about four. A name or an odd
    number alone is enough where the seeds seldom share one, and not where all inputs are made of numbers.
    """
    prompt = bundle.draft_prefix
    shown = [seed.input for seed in task.seeds if seed.input in prompt]
    other = [seed.input for seed in task.seeds if seed.input not in prompt]
    others = [set(read_input(text).words) for text in other]
    for text in sorted(shown, key=len, reverse=True):
        prompt = prompt.replace(text, " ")
    holders = Counter(word for words in others for word in words)
    usual = set(read_input(prompt).words) | {word for word, count in holders.items() if count > 1}
    rare = frozenset(word for text in shown for word in read_input(text).words if word not in usual)
    hits = sum(len(words & rare) for words in others)
    tokens, mean = _tokens(shown, other, prompt)
    # One more hit and one more word than were seen (Laplace): without others, every word may be one of them.
    return DemoLeak(tokens, mean, rare, (hits + 1) / (sum(map(len, others)) + 1), chance)


def _tokens(shown: Sequence[str], other: Sequence[str], prompt: str) -> tuple[frozenset[str], float]:
    """Names and numbers that only the demonstrations hold, and how many of them a text of the task is expected to hold by chance.

    Source:
        Good 1953, Biometrika 40: what one of n texts holds stands in the next one with chance 2 N2 / (N1 n), with N1 such tokens in one
        text and N2 in two. One more is counted in N2 than was seen.
    """
    special = special_tokens([*shown, *other, prompt])
    texts = [*shown, *other]
    holders = Counter(token for text in texts for token in token_set(text) & special)
    known = {token.casefold() for text in [*other, prompt] for token in token_set(text)}
    tokens = frozenset(token for text in shown for token in token_set(text) & special if token.casefold() not in known)
    once, twice = (sum(count == times for count in holders.values()) for times in (1, 2))
    return tokens, len(tokens) * (2 * twice + 1) / max(1, once * len(texts))


def _at_least(count: int, mean: float) -> float:
    """The chance that a Poisson variable of this mean is at least `count`."""
    return 1 - math.fsum(math.exp(-mean) * mean**k / math.factorial(k) for k in range(count))
