"""Accounting of energy: windows that processes measured, divided among the work done in them. Pure functions of whole numbers.

Times are milliseconds and energies millijoules, the units of the counters, so that parts add up to their whole exactly. Knows neither
where readings come from nor where they are kept.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Method = Literal["measured", "estimated", ""]

LOAD, IDLE, LOST = "load", "idle", "lost"
"""Parts of a window without finished work: starting an engine; waiting; requests that were under way and never finished."""

_COUNTER_BITS = (32, 64)
_MOST_WATTS = 2000
"""More than any one device draws: a larger gain is no wrap of its counter."""


@dataclass(frozen=True, slots=True)
class Used:
    """What was used.

    Attributes:
        wall_ms: Time on the clock, summed over processes.
        core_ms: Measured CPU time, user and system.
        measured_mj: Energy of GPUs by their own counters.
        estimated_mj: Energy of GPUs by their power over time, by a share of a shared one, or around a restart of the counter.
        unmetered: Whether more was used that nothing here could measure: a GPU without counter, a remote model.
    """

    wall_ms: int = 0
    core_ms: int = 0
    measured_mj: int = 0
    estimated_mj: int = 0
    unmetered: bool = False

    def __add__(self, other: "Used") -> "Used":
        return Used(
            self.wall_ms + other.wall_ms,
            self.core_ms + other.core_ms,
            self.measured_mj + other.measured_mj,
            self.estimated_mj + other.estimated_mj,
            self.unmetered or other.unmetered,
        )


@dataclass(frozen=True, slots=True)
class Window:
    """What one process used between two readings.

    Attributes:
        stage: Stage of the run that was under way: `generate-psi`.
        process: Which incarnation of which process.
        role: What it does: `replica`, `rank`, `driver`, `coordinator`.
        pool: Pool of a replica; empty for others.
        used: What it used.
        idle_mj: Of that, what its GPUs would have drawn without work.
        tokens: Tokens of the requests that finished in it, by request stage: `requests`, `prompt_tokens`, `cached_tokens`, `output_tokens`.
        unfinished: Requests under way at its end.
        loading: Whether the engine was being started.
    """

    stage: str
    process: str
    role: str
    pool: str
    used: Used
    idle_mj: int = 0
    tokens: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, dict[str, int]])
    unfinished: int = 0
    loading: bool = False


def counter_gain(before: int, now: int, milliseconds: int) -> tuple[int, Method]:
    """What a device's energy counter, in millijoules, rose by, although it may have wrapped or begun again at 0 (a driver restart).

    Returns:
        The gain and its method. After a restart it is what was counted since, a lower bound, and `estimated`.
    """
    if now >= before:
        return now - before, "measured"
    for bits in _COUNTER_BITS:
        gain = now + 2**bits - before
        if before < 2**bits and gain <= _MOST_WATTS * milliseconds:
            return gain, "measured"
    return now, "estimated"


def apportion(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Divide a whole number in proportion to weights, in whole numbers that add up to it exactly.

    Args:
        total: Not negative.
        weights: Not negative, one of them positive.
    """
    scale, reached, given = sum(weights.values()), 0.0, 0
    parts: dict[str, int] = {}
    for name, weight in weights.items():
        reached += weight
        upto = max(given, min(total, round(total * (reached / scale))))
        parts[name], given = upto - given, upto
    parts[max(weights, key=lambda name: weights[name])] += total - given  # what a float cannot hold of a large total
    return parts


def token_work(counts: Mapping[str, int], prefill_weight: float) -> float:
    """Work of some requests in decoded tokens: a prompt token that the prefix cache did not hold counts `prefill_weight`."""
    uncached = counts.get("prompt_tokens", 0) - counts.get("cached_tokens", 0)
    return prefill_weight * max(0, uncached) + counts.get("output_tokens", 0)


def divide(window: Window, prefill_weight: float) -> dict[str, Used]:
    """A window's use by request stage, or by `load`, `idle` or `lost` where no request finished in it.

    What GPUs draw without work goes by the steps that each stage held a place in the batch, one per decoded token; all else by token
    work. The parts add up to the window exactly.
    """
    work = {stage: token_work(counts, prefill_weight) for stage, counts in window.tokens.items()}
    work = {stage: amount for stage, amount in work.items() if amount > 0}
    used = window.used
    if window.loading or not work:
        return {LOAD if window.loading else LOST if window.unfinished else IDLE: used}
    steps = {stage: float(window.tokens[stage].get("output_tokens", 0)) for stage in work}
    steps = steps if any(steps.values()) else work
    wall, core = apportion(used.wall_ms, work), apportion(used.core_ms, work)
    idle = min(window.idle_mj, used.measured_mj)
    waiting, busy = apportion(idle, steps), apportion(used.measured_mj - idle, work)
    estimated = apportion(used.estimated_mj, work)
    return {
        stage: Used(wall[stage], core[stage], waiting[stage] + busy[stage], estimated[stage], used.unmetered)
        for stage in work
    }


def joined(windows: Iterable[Window]) -> list[Window]:
    """Windows with those that ended amid requests, none of them finished, made one with the next of the same process and stage.

    Tokens are counted when a request ends: a long one spans windows that would look idle.
    """
    waiting: dict[str, Window] = {}
    done: list[Window] = []
    for window in windows:
        before = waiting.pop(window.process, None)
        whole = bool(window.tokens) or window.loading or not window.unfinished
        if before is not None and before.stage == window.stage and not window.loading:
            window = replace(
                window,
                used=before.used + window.used,
                idle_mj=before.idle_mj + window.idle_mj,
                unfinished=window.unfinished or before.unfinished,
            )
        elif before is not None:
            done.append(before)
        if whole:
            done.append(window)
        else:
            waiting[window.process] = window
    return done + list(waiting.values())


def break_even_rows(principles_joules: float, large_per_row: float, small_per_row: float) -> float:
    """Rows from which on principles and a small writer use less than the large model alone; infinite where they never do."""
    saved = large_per_row - small_per_row
    return principles_joules / saved if saved > 0 else math.inf
