"""Placebos: principles that are as long as real ones and say nothing of the task, to tell what a text says from that it is there."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

from generation.principles.model import Principle, normalise, principle_id
from generation.principles.utility import prefix_tokens


def placebo(found_by_task: Mapping[str, Sequence[Principle]], task: str, rng_seed: int) -> list[Principle]:
    """Placebos for the active principles of a task: those of one other task, each nearest in length to the one it stands for.

    Level and kind are kept where the other task has an active principle of them; the other task is the one that fits best. Where no other
    task has any, the words of the task's own principles are shuffled.

    Args:
        found_by_task: Task name to its principles.
        task: For which task.
        rng_seed: Decides between equally good ones.

    Returns:
        Active principles of `task` whose reason names where they come from.
    """
    own = [p for p in found_by_task[task] if p.status == "active"]
    donors = {
        name: [p for p in found if p.status == "active" and p.text]
        for name, found in found_by_task.items()
        if name != task
    }
    rng = Random(f"{rng_seed} placebo {task}")
    paired = [_paired(own, donors[name]) for name in rng.sample(sorted(donors), len(donors)) if donors[name]]
    if not any(paired):
        return [as_placebo(p, shuffled(p, rng), "its own words in another order") for p in own]
    best = min(filter(None, paired), key=lambda pairs: _misfit(own, pairs))
    return [as_placebo(p, other, f"task {other.task}") for p, other in best]


def nearest_placebo(principle: Principle, others: Sequence[Principle], rng_seed: int) -> Principle:
    """What a candidate is tried against: the principle nearest in length, of its kind where there is one, else its own words shuffled.

    Args:
        principle: The candidate.
        others: Principles of other tasks that are none of this task's.
        rng_seed: Of the shuffle.
    """
    if not others:
        return shuffled(principle, Random(f"{rng_seed} {principle.principle_id}"))
    length = prefix_tokens(principle)
    return min(others, key=lambda p: (p.kind != principle.kind, abs(prefix_tokens(p) - length), p.text, p.principle_id))


def as_placebo(principle: Principle, other: Principle, source: str) -> Principle:
    """The text of `other` in the place of `principle`: same task, level and kind."""
    return Principle(
        principle_id(principle.task, principle.level, principle.kind, other.text),
        principle.task,
        principle.level,
        principle.kind,
        other.text,
        when=other.when,
        model=other.model,
        status="active",
        reason=f"placebo: from {source}",
    )


def shuffled(principle: Principle, rng: Random) -> Principle:
    """The principle with the words of its text, and those of when it applies, in another order, or the letters where the words have none."""
    return replace(principle, text=_mixed(principle.text, rng), when=_mixed(principle.when, rng))


def _mixed(text: str, rng: Random) -> str:
    words = text.split()
    return " ".join(_reordered(words, rng)) if len(set(words)) > 1 else _letters(words, rng)


def _letters(words: list[str], rng: Random) -> str:
    return " ".join("".join(_reordered(list(word), rng)) for word in words)


def _reordered(parts: list[str], rng: Random) -> list[str]:
    order = list(parts)
    while len(set(parts)) > 1 and order == parts:
        rng.shuffle(order)
    return order


def _paired(own: Sequence[Principle], others: Sequence[Principle]) -> list[tuple[Principle, Principle]]:
    """Each principle with the unused other that is nearest in level, kind and length; fewer pairs where there are fewer others that say something else."""
    said = {normalise(p.text) for p in own}
    left, pairs = [p for p in others if normalise(p.text) not in said], list[tuple[Principle, Principle]]()
    for principle in own:
        if left:
            best = min(left, key=lambda other: (_strangeness(principle, other), other.text))
            left.remove(best)
            pairs.append((principle, best))
    return pairs


def _strangeness(principle: Principle, other: Principle) -> tuple[bool, bool, int]:
    return (
        principle.kind != other.kind,
        principle.level != other.level,
        abs(prefix_tokens(principle) - prefix_tokens(other)),
    )


def _misfit(own: Sequence[Principle], pairs: Sequence[tuple[Principle, Principle]]) -> tuple[int, ...]:
    """Sort key: principles with no counterpart, with one of another kind, with one of another level, and tokens of difference."""
    strange = [_strangeness(p, other) for p, other in pairs]
    return len(own) - len(pairs), *(sum(part) for part in zip(*strange, strict=True))
