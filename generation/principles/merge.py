"""Merging candidates that say the same: exactly, or in nearly the same words."""

from collections.abc import Sequence
from dataclasses import replace

from generation.principles.cluster_seeds import embed
from generation.principles.model import Principle

SIMILARITY = 0.85
MIN_WORDS = 8
"""Shorter texts merge only when they are equal: `sort; reverse` and `reverse; sort` look alike and are not the same."""


MERGED = "merged into "
"""Start of the reason of what was merged into another; the id of that one follows."""


def merge(candidates: Sequence[Principle]) -> list[Principle]:
    """Candidates with what says the same merged, level by level and kind by kind, best supported first.

    The support and the calls of a merged group are added up on its best supported member; the others stay in the list as retired, with
    a reason that names it. Candidates that are retired already come last, unmerged except for equal ones.
    """
    single = _without_repeats(candidates)
    groups: dict[tuple[str, str], list[Principle]] = {}
    for principle in single:
        if principle.status != "retired":
            groups.setdefault((principle.level, principle.kind), []).append(principle)
    merged = [principle for group in groups.values() for principle in _merge_similar(group)]
    kept = [p for p in merged if p.status != "retired"]
    return [*sorted(kept, key=strength), *(p for p in (*merged, *single) if p.status == "retired")]


def strength(principle: Principle) -> tuple[int, int, str]:
    """Sort key, best supported first: seeds that speak for it, then calls that gave it, then its text."""
    return -len(principle.support), -len(principle.calls), principle.text


def _without_repeats(candidates: Sequence[Principle]) -> list[Principle]:
    """One candidate an id. One that passed the gates stands for retired ones of its id (say, of a call whose support was unreadable)."""
    by_id: dict[str, Principle] = {}
    for candidate in candidates:
        earlier = by_id.get(candidate.principle_id)
        if earlier is None:
            by_id[candidate.principle_id] = candidate
        elif earlier.status == "retired" and candidate.status != "retired":
            by_id[candidate.principle_id] = _joined(candidate, earlier)
        else:
            by_id[candidate.principle_id] = _joined(earlier, candidate)
    return list(by_id.values())


def _merge_similar(group: list[Principle]) -> list[Principle]:
    ordered = sorted(group, key=strength)
    vectors = embed([principle.text for principle in ordered])
    alike = vectors @ vectors.T >= SIMILARITY
    heads: dict[int, Principle] = {}
    retired: list[Principle] = []
    for i, principle in enumerate(ordered):
        head = next((h for h in heads if alike[h, i] and _long(heads[h]) and _long(principle)), None)
        if head is None:
            heads[i] = principle
        else:
            heads[head] = _joined(heads[head], principle)
            retired.append(replace(principle, status="retired", reason=f"{MERGED}{heads[head].principle_id}"))
    return [*heads.values(), *retired]


def _long(principle: Principle) -> bool:
    return len(principle.text.split()) >= MIN_WORDS


def _joined(kept: Principle, other: Principle) -> Principle:
    return replace(
        kept,
        support=tuple(dict.fromkeys((*kept.support, *other.support))),
        calls=tuple(dict.fromkeys((*kept.calls, *other.calls))),
        shown=tuple(dict.fromkeys((*kept.shown, *other.shown))),
    )
