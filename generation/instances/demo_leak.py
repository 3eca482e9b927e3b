"""Finds drafts that take over what is particular to a demonstration: its names, its objects, its wording. No list of words is kept by hand."""

import math
from collections import Counter
from dataclasses import dataclass

from generation.curation.filters import demo_tokens, holds_token
from generation.curation.text import read_input
from generation.instances.plan import Bundle
from generation.task import Task


@dataclass(frozen=True, slots=True)
class DemoLeak:
    """The blacklist of one bundle.

    Attributes:
        tokens: Names and odd numbers that the demonstrations in its draft prompt hold and nothing else does; one is enough.
        rare: Their words that the task hardly uses otherwise: at most one other seed has them, and nothing else in the prompt.
        rate: Share of the words of an input written without these demonstrations that are among them, as seen in the other seeds.
        chance: A draft is dropped when inputs of that rate would hold as many rare words less often than this.
    """

    tokens: frozenset[str]
    rare: frozenset[str]
    rate: float
    chance: float

    def reason(self, draft: str) -> str | None:
        """Why a draft counts as leaked, if it does."""
        if holds_token(draft, self.tokens):
            return "holds a name or number of a demonstration"
        words = set(read_input(draft).words)
        repeated = len(words & self.rare)
        if repeated and _at_least(repeated, self.rate * len(words)) < self.chance:
            return "repeats rare words of the demonstrations"
        return None


def find_demo_leak(task: Task, bundle: Bundle, chance: float) -> DemoLeak:
    """The blacklist of a bundle, from all seeds of its task.

    With few seeds the rate is not known to be low, so many words must be repeated: of 20 short inputs, about four.
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
    tokens = demo_tokens(shown, [*other, prompt]) if chance else frozenset[str]()
    # One more hit and one more word than were seen (Laplace): without others, every word may be one of them.
    return DemoLeak(tokens, rare, (hits + 1) / (sum(map(len, others)) + 1), chance)


def _at_least(count: int, mean: float) -> float:
    """The chance that a Poisson variable of this mean is at least `count`."""
    return 1 - math.fsum(math.exp(-mean) * mean**k / math.factorial(k) for k in range(count))
