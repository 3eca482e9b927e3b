"""Yield by stage: how many rows went in, how many came out, and why the others did not."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FLOW_STAGES = (
    "engine",
    "parse",
    "length",
    "duplicate",
    "bounds",
    "copy",
    "contamination",
    "demo_leak",
    "vote",
    "round_trip",
)
"""Where a flow may reject its own row, in order; other stages follow in alphabetical order. The fold asks bounds, copy and contamination
again, and drops there what no flow was screened for."""
FOLD_STAGES = (
    "training_view", "label", "exact_duplicate", "verifier", "near_duplicate", "semantic_duplicate", "label_share",
    "opening_share", "cell_share", "principle_share", "overshoot",
)  # fmt: skip
"""Stages of the fold, in order. What `overshoot` drops was accepted beyond the target."""

StageCounts = dict[str, dict[str, Any]]
"""Stage -> `{"in": rows, "out": rows, "reasons": {reason: rows}}`, in the order in which rows pass the stages."""


def funnel(total: int, drops: Mapping[str, Mapping[str, int]]) -> StageCounts:
    """Counts of all stages, those without drops included, from the rows that each stage dropped by reason."""
    others = sorted(set(drops) - set(FLOW_STAGES) - set(FOLD_STAGES))
    counts: StageCounts = {}
    for stage in (*FLOW_STAGES, *others, *FOLD_STAGES):
        reasons = dict(Counter(drops.get(stage, {})).most_common())
        left = total - sum(reasons.values())
        counts[stage] = {"in": total, "out": left, "reasons": reasons}
        total = left
    return counts


def merge_counts(parts: Sequence[StageCounts]) -> StageCounts:
    """The counts of several tasks as those of one."""
    drops: dict[str, Counter[str]] = {}
    for stage, reasons in _reasons(parts):
        drops.setdefault(stage, Counter()).update(reasons)
    return funnel(sum(_total(part) for part in parts), drops)


def _reasons(parts: Iterable[StageCounts]) -> Iterable[tuple[str, Mapping[str, int]]]:
    return ((stage, count["reasons"]) for part in parts for stage, count in part.items())


def _total(counts: StageCounts) -> int:
    return next((count["in"] for count in counts.values()), 0)
