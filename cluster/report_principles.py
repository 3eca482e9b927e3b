"""The principles of a run in its report: counts of all candidates, and each selected one with what it was measured to do."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from generation.principles.model import Difference, Principle, principles_file, read_principles
from generation.storage import Store

SOLVE_ESTIMATES = {"solve_gain": "over none", "placebo_gain": "over a placebo"}
DRAFT_ESTIMATES = {
    "parse_delta": "of drafts readable",
    "yield_delta": "of drafts agreed on",
    "novelty_delta": "novelty",
    "coverage_delta": "of seeds covered",
}
"""Field of `Principle` to what it measures, in words that follow the number."""

TRIED_ON = {
    "validate": "on seeds kept back for it",
    "cross-fit": "on seeds that no call for it showed, as they are few",
    "": "on none: by the static gate and support alone",
}

_VARIABLE = re.compile(r"\b(?:[0-9a-f]{16,}|\d+(?:\.\d+)?)\b")
"""Ids and numbers in a reason: without them, equal reasons can be counted."""


def principles_section(run: Store) -> dict[str, Any]:
    """Counts of all candidates; texts of the selected ones only, since a retired one may quote a seed."""
    if not run.exists(principles_file(0)):
        return {"candidates": None, "selected": None, "counts": None}
    candidates = read_principles(run)
    selected = [_principle(p) for p in candidates if p.status == "active"]
    return {
        "candidates": len(candidates),
        "selected": sorted(selected, key=lambda row: (row["task"], row["level"])),
        "counts": {
            "status": dict(Counter(p.status for p in candidates).most_common()),
            "reason": reasons(candidates),
            "level": dict(Counter(p.level for p in candidates).most_common()),
            "leaks": sum(p.leaks for p in candidates),
            "tried": dict(Counter(TRIED_ON[p.tried_on] for p in candidates if p.status == "active").most_common()),
        },
    }


def reasons(principles: Iterable[Principle]) -> dict[str, int]:
    """Reason to how many have it, most frequent first; ids and numbers in them count as equal."""
    return dict(Counter(_VARIABLE.sub("#", p.reason) for p in principles if p.reason).most_common())


def estimates_of(principle: Principle) -> dict[str, Difference | None]:
    """Those that a principle of its kind can have, by field."""
    names = DRAFT_ESTIMATES if principle.kind == "generate" else SOLVE_ESTIMATES
    return {name: getattr(principle, name) for name in names}


def _principle(p: Principle) -> dict[str, Any]:
    imported = p.model == "file"
    found = {} if imported else {name: _estimate(value) for name, value in estimates_of(p).items()}
    return {
        "task": p.task,
        "level": p.level,
        "kind": p.kind,
        "text": p.text,
        "support": None if imported else len(p.support),
        "tried": TRIED_ON[p.tried_on],
        "solve_accuracy": p.solve_accuracy,
        "utility": p.utility,
        "estimates": found,
    }


def _estimate(found: Difference | None) -> dict[str, Any] | None:
    return None if found is None else {"value": found.value, "ci95": [found.low, found.high], "probes": found.items}
