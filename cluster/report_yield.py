"""Where generated rows went, and how fast they came. Pure functions of metrics lines and of the dataset's summary."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from cluster.report_files import moment, number, total
from generation.curation.counts import FLOW_STAGES, FOLD_STAGES, StageCounts, funnel

SERIES_POINTS = 100
"""About so many points of a series are kept: as many as a picture can show."""

SHORTEST_WINDOW_SECONDS = 5.0


def read_yield(metrics: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Rows in and out of each stage, in order, with the reasons of those dropped.

    Args:
        metrics: An arm's lines in time order; the counters of the last one are cumulative.
        summary: The summary of the arm's dataset. Its stages cover exactly the rows that were folded; without it (the run ended
            early) those that the replicas dropped are known from the metrics alone.
    """
    stages = _in_order(summary.get("stages") or {}) or _flow_stages(metrics[-1] if metrics else {})
    known = list(stages.values())
    flows = number(known[0], "in") if known else None
    instances = [stage for name, stage in stages.items() if name not in FOLD_STAGES]
    overshoot = stages.get("overshoot", {})
    return {
        "flows": flows,
        "instances": number(instances[-1], "out") if instances else None,
        "accepted": number(overshoot, "in"),
        "overshoot": overshoot["in"] - overshoot["out"] if overshoot else None,
        "rows": total(summary.get("rows")),
        "stages": stages,
    }


def _in_order(stages: Mapping[str, dict[str, Any]]) -> StageCounts:
    """JSON objects may come sorted by name; rows pass the fold's stages last."""
    order = {name: place for place, name in enumerate((*FLOW_STAGES, "", *FOLD_STAGES))}
    names = sorted(stages, key=lambda name: (order.get(name, order[""]), name))
    return {
        name: {"in": stages[name]["in"], "out": stages[name]["out"], "reasons": stages[name]["reasons"]}
        for name in names
    }


def _flow_stages(last: Mapping[str, Any]) -> StageCounts:
    """From counts by `task/stage/reason`, summed over tasks."""
    instances, rejections = total(last.get("instances")), last.get("rejections")
    if instances is None or rejections is None:
        return {}
    drops: dict[str, dict[str, int]] = {}
    for key, rows in rejections.items():
        _, stage, reason = key.split("/", 2)
        reasons = drops.setdefault(stage, {})
        reasons[reason] = reasons.get(reason, 0) + rows
    counts = funnel(int(instances) + sum(rejections.values()), drops)
    return {name: stage for name, stage in counts.items() if name not in FOLD_STAGES}


def generation_speed(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean speed of an arm, and its course.

    Time between the end of a driver and the start of its successor does not count.

    Returns:
        `seconds` of generation that the lines cover, means over them, and `series` of equally long columns.
    """
    pairs = [_step(a, b) for a, b in pairwise(metrics)]
    steps = [step for step in pairs if step is not None and step["seconds"] > 0]
    seconds = sum(step["seconds"] for step in steps)
    return {
        "seconds": seconds or None,
        "generated_tokens_per_second": sum(s["tokens"] for s in steps) / seconds if seconds else None,
        "accepted_rows_per_second": sum(s["accepted"] for s in steps) / seconds if seconds else None,
        "series": _series(steps),
    }


def _step(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float] | None:
    """What happened between two lines; None across a restart, where the stage's own clock begins again."""
    if after.get("session") != before.get("session") or (number(after, "seconds") or 0) < (
        number(before, "seconds") or 0
    ):
        return None
    return {
        "seconds": (moment(after["time"]) or 0.0) - (moment(before["time"]) or 0.0),
        "tokens": max(0.0, output_tokens(after) - output_tokens(before)),
        "accepted": max(0.0, (total(after.get("accepted")) or 0.0) - (total(before.get("accepted")) or 0.0)),
        "total_accepted": total(after.get("accepted")) or 0.0,
    }


def output_tokens(line: Mapping[str, Any]) -> float:
    """Tokens that all stages of a metrics line have generated so far."""
    return sum(number(counts, "output_tokens") or 0.0 for counts in (line.get("tokens") or {}).values())


def _series(steps: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Averages over windows: units are committed in groups, so shorter ones would show the commits and not the speed."""
    width = max(SHORTEST_WINDOW_SECONDS, sum(step["seconds"] for step in steps) / SERIES_POINTS)
    series: dict[str, list[float]] = {"seconds": [], "generated_tokens_per_second": [], "accepted_rows": []}
    elapsed = seconds = tokens = 0.0
    for place, step in enumerate(steps, start=1):
        seconds, tokens = seconds + step["seconds"], tokens + step["tokens"]
        if seconds >= width or (place == len(steps) and not series["seconds"]):
            elapsed += seconds
            series["seconds"].append(round(elapsed, 3))
            series["generated_tokens_per_second"].append(tokens / seconds)
            series["accepted_rows"].append(step["total_accepted"])
            seconds = tokens = 0.0
    return series
