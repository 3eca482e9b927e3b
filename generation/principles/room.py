"""What quotas and the token budget of a bundle still allow while principles are selected."""

from collections import Counter
from dataclasses import dataclass, field

from generation.config import PrinciplesConfig
from generation.principles.model import Principle
from generation.principles.utility import prefix_tokens


@dataclass(slots=True)
class Room:
    """What quotas and the token budget still allow, and what the selected ones speak for.

    Attributes:
        quotas: Level to how many of its principles may be selected.
        tokens: Prefix tokens that are left.
        taken: Level to how many are selected.
        covered: (support seed, level) of the selected ones.
    """

    quotas: dict[str, int]
    tokens: int
    taken: Counter[str] = field(default_factory=Counter[str])
    covered: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])

    @classmethod
    def of(cls, config: PrinciplesConfig) -> "Room":
        """All that a recipe allows."""
        return cls({name: level.quota for name, level in config.levels.items()}, config.prefix_token_budget)

    def refusal(self, principle: Principle) -> str:
        """Why the principle does not fit, or empty."""
        if self.taken[principle.level] >= self.quotas[principle.level]:
            return f"quota of level {principle.level} is full"
        return "" if prefix_tokens(principle) <= self.tokens else "prefix token budget is used up"

    def take(self, principle: Principle) -> None:
        """Count a principle as selected."""
        self.taken[principle.level] += 1
        self.tokens -= prefix_tokens(principle)
        self.covered |= {(seed, principle.level) for seed in principle.support}

    def new_cover(self, principle: Principle) -> int:
        """Support seeds that none of its level among the selected ones speaks for."""
        return sum((seed, principle.level) not in self.covered for seed in principle.support)
