"""Candidates of equal text on several levels: tried once, kept apart."""

from collections.abc import Sequence
from dataclasses import replace

from generation.principles.model import Principle, normalise


def with_twins(candidates: Sequence[Principle]) -> list[list[Principle]]:
    """Candidates of equal text, on whatever level, together: they are tried once, on seeds that no call for any of them showed."""
    groups: dict[str, list[Principle]] = {}
    for principle in candidates:
        groups.setdefault(normalise(principle.text), []).append(principle)
    joined: list[list[Principle]] = []
    for twins in groups.values():
        shown = tuple(dict.fromkeys(seed for p in twins for seed in p.shown))
        joined.append([replace(p, shown=shown) for p in twins])
    return joined


def spread_out(tried: Sequence[Principle], groups: Sequence[list[Principle]]) -> list[Principle]:
    """What was tried, followed by its twins with the same scores."""
    by_text = {normalise(group[0].text): group for group in groups}
    return [
        replace(scored, principle_id=p.principle_id, level=p.level, kind=p.kind, support=p.support, model=p.model,
                template=p.template, calls=p.calls)
        for scored in tried
        for p in by_text[normalise(scored.text)]
    ]  # fmt: skip
