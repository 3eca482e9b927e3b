"""Selection by solve-utility: the small model answers held-out seeds with each candidate, and those that help are kept together.

Generate principles are selected by their support; trying them costs whole instances and is not done here.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from generation.config import PrinciplesConfig
from generation.flows import FlowCall
from generation.principles.ask import Ask, Trial, try_principles, values_of
from generation.principles.merge import strength
from generation.principles.model import Principle, normalise
from generation.prompts.prompt_set import PromptSet
from generation.task import Task

MIN_SEEDS = 12
"""Fewer seeds of a task, and an accuracy on a quarter of them says nothing."""
MAX_TRIED = 64
"""Candidates that are tried; the best supported ones."""
TRIED_BESIDE = 8
"""Candidates that are tried beside the selected ones in each round of the forward selection; the best ones alone."""
BOOTSTRAP_SAMPLES = 2000

Rights = NDArray[np.bool_]


@dataclass(frozen=True)
class Prober:
    """Measures sets of principles on the probe seeds.

    Attributes:
        task: The task, with its seeds.
        config: Its section of the recipe.
        prompts: The prompt set.
        small: Asks the small model.
    """

    task: Task
    config: PrinciplesConfig
    prompts: PromptSet
    small: Ask

    @property
    def items(self) -> int:
        """Probe seeds; 0 where the task has too few seeds for any trial."""
        enough = len(self.task.seeds) >= MIN_SEEDS
        return min(len(self.task.split("validate")), self.config.probe_seeds) if enough else 0

    def rights(self, sets: Sequence[tuple[Principle, ...]]) -> list[Rights]:
        """Which probe seeds the small model answers rightly with each set in its prompt; bool, shape (items,), in the order of `sets`."""
        seeds = self.task.split("validate")[: self.items]
        bare = Task(self.task.config, ())
        calls = [
            FlowCall(f"probe/{i:04d}", try_principles, (bare, self.prompts, s, seeds, self.config.probe_output_tokens))
            for i, s in enumerate(sets)
        ]
        answers: dict[str, list[Trial]] = values_of(self.small(calls))
        return [np.array([trial.right for trial in answers[call.key]], dtype=np.bool_) for call in calls]


@dataclass(slots=True)
class Room:
    """What quotas and the token budget still allow.

    Attributes:
        quotas: Level to how many of its principles may be selected.
        tokens: Prefix tokens that are left.
        taken: Level to how many are selected.
    """

    quotas: dict[str, int]
    tokens: int
    taken: Counter[str] = field(default_factory=Counter[str])

    @classmethod
    def of(cls, config: PrinciplesConfig) -> "Room":
        """All that a recipe allows."""
        return cls({name: level.quota for name, level in config.levels.items()}, config.prefix_token_budget)

    def refusal(self, principle: Principle) -> str:
        """Why the principle does not fit, or empty."""
        if self.taken[principle.level] >= self.quotas[principle.level]:
            return f"quota of level {principle.level} is full"
        return "" if _tokens(principle) <= self.tokens else "prefix token budget is used up"

    def take(self, principle: Principle) -> None:
        """Count a principle as selected."""
        self.taken[principle.level] += 1
        self.tokens -= _tokens(principle)


def select(candidates: Sequence[Principle], config: PrinciplesConfig, prober: Prober, rng_seed: int) -> list[Principle]:
    """Every candidate with its scores, status and reason; the selected ones come first, in the order of selection.

    Args:
        candidates: Merged; retired ones pass through.
        config: Quotas, budget, least gain.
        prober: Tries sets of principles.
        rng_seed: Of the bootstrap.
    """
    room = Room.of(config)
    open_ones = sorted((p for p in candidates if p.status == "candidate"), key=strength)
    retired = [p for p in candidates if p.status == "retired"]
    if not prober.items:
        why = f"static gate and support alone: {len(prober.task.seeds)} seeds are too few to try it on"
        return [*_by_support(open_ones, room, why), *retired]
    solving = [p for p in open_ones if p.kind != "generate"]
    chosen = _by_utility(solving, config, prober, room, rng_seed)
    supported = _by_support([p for p in open_ones if p.kind == "generate"], room, "static gate and support")
    return [*sorted((*chosen, *supported), key=lambda p: p.status != "active"), *retired]


def with_fallback(principles: Sequence[Principle], config: PrinciplesConfig) -> list[Principle]:
    """The same, with the best supported solve and check candidates active where none of them helped; selected ones come first."""
    if any(p.status == "active" and p.kind != "generate" for p in principles):
        return list(principles)
    room = Room.of(config)
    for principle in principles:
        if principle.status == "active":
            room.take(principle)
    open_ones = sorted((p for p in principles if p.status == "candidate" and p.kind != "generate"), key=strength)
    taken = {p.principle_id: p for p in _by_support(open_ones, room, "support alone, as none helped")}
    merged = [taken.get(p.principle_id, p) for p in principles]
    return sorted(merged, key=lambda p: p.status != "active")


def gain_interval(rights: Rights, baseline: Rights, rng_seed: int) -> tuple[float, float, float]:
    """(gain, low, high): the difference of two accuracies on the same items, with its 95 % paired bootstrap interval."""
    difference = rights.astype(np.int64) - baseline.astype(np.int64)
    shares = np.array([(difference == step).mean() for step in (-1, 0, 1)])
    # To draw n of n paired items with replacement is to draw the counts of worse, equal and better ones from a multinomial.
    drawn = np.random.default_rng(rng_seed).multinomial(len(difference), shares, BOOTSTRAP_SAMPLES)
    low, high = np.quantile((drawn[:, 2] - drawn[:, 0]) / len(difference), (0.025, 0.975))
    return float(difference.mean()), float(low), float(high)


def _by_support(candidates: Sequence[Principle], room: Room, why: str) -> list[Principle]:
    selected: list[Principle] = []
    for principle in candidates:
        refusal = room.refusal(principle)
        if not refusal:
            room.take(principle)
        status = "candidate" if refusal else "active"
        selected.append(replace(principle, status=status, reason=refusal or f"selected by {why}"))
    return selected


def _by_utility(
    candidates: list[Principle], config: PrinciplesConfig, prober: Prober, room: Room, rng_seed: int
) -> list[Principle]:
    """Greedy forward selection: the best candidate alone, then whichever adds most to the accuracy of those selected."""
    if not candidates:
        return []
    measured, baseline = _measure(candidates[:MAX_TRIED], prober, rng_seed)
    untried = [replace(p, reason=f"not tried: {MAX_TRIED} have more support") for p in candidates[MAX_TRIED:]]
    waiting = sorted(measured, key=lambda p: (-(p.solve_accuracy or 0.0), strength(p)))
    selected: list[Principle] = []
    reached = baseline
    scores = {p.principle_id: p.solve_accuracy or 0.0 for p in waiting}
    while True:
        fitting = [p for p in waiting if not room.refusal(p)]
        if not fitting:
            break
        best = max(fitting, key=lambda p: scores.get(p.principle_id, -1.0))
        gain = scores.get(best.principle_id, -1.0) - reached
        if gain <= config.min_solve_gain:
            break
        room.take(best)
        waiting = [p for p in waiting if p is not best]
        selected.append(
            replace(best, status="active", reason=f"selected: adds {gain:.3f} to the accuracy of the bundle")
        )
        reached += gain
        scores = _beside(selected, waiting, room, prober)
    return [*selected, *(_left(p, selected, room) for p in waiting), *untried]


def _measure(candidates: Sequence[Principle], prober: Prober, rng_seed: int) -> tuple[list[Principle], float]:
    """Each candidate with its own scores, and the accuracy with no principle. Equal texts are tried once."""
    texts = {normalise(p.text): p for p in reversed(candidates)}
    baseline, *rights = prober.rights([(), *((p,) for p in texts.values())])
    by_text = dict(zip(texts, rights, strict=True))
    measured: list[Principle] = []
    for principle in candidates:
        own = by_text[normalise(principle.text)]
        gain, low, high = gain_interval(own, baseline, rng_seed)
        measured.append(
            replace(
                principle,
                solve_accuracy=float(own.mean()),
                solve_gain=gain,
                solve_gain_low=low,
                solve_gain_high=high,
                probe_items=len(own),
            )
        )
    return measured, float(baseline.mean())


def _beside(selected: list[Principle], waiting: list[Principle], room: Room, prober: Prober) -> dict[str, float]:
    """Principle id to accuracy of the selected ones with it, for the best waiting ones that say something new and fit."""
    said = {normalise(p.text) for p in selected}
    tried = [p for p in waiting if not room.refusal(p) and normalise(p.text) not in said][:TRIED_BESIDE]
    rights = prober.rights([(*selected, p) for p in tried]) if tried else []
    return {p.principle_id: float(r.mean()) for p, r in zip(tried, rights, strict=True)}


def _left(principle: Principle, selected: list[Principle], room: Room) -> Principle:
    """Why a tried candidate was not selected; one that harms for certain is retired."""
    if principle.solve_gain_high is not None and principle.solve_gain_high < 0:
        return replace(principle, status="retired", reason="utility: lowers the accuracy")
    if principle.solve_gain is not None and principle.solve_gain <= 0:
        return replace(principle, reason="utility: no gain alone")
    twin = next((p for p in selected if normalise(p.text) == normalise(principle.text)), None)
    if twin is not None:
        return replace(principle, reason=f"same text as {twin.principle_id}")
    return replace(principle, reason=room.refusal(principle) or "utility: adds nothing to those selected")


def _tokens(principle: Principle) -> int:
    return -(-len(f"{principle.when} {principle.text}".strip()) // 4)
