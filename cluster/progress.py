"""What a run prints while it works, and the short table that it ends with. Knows no stage, only counters and numbers."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from generation.spent import Spent

NOT_MEASURED = "not measured"

WIDTH = 79
"""Columns of a progress line: the 80th would wrap the cursor on many terminals."""

LEAST_FIRST = ("accepted", "rate", "eta", "replicas", "trouble", "tokens", "note", "done")
"""What a line that is too long loses, one after the other."""

WORTH_A_WORD = 0.05
"""A share of the replicas' time that is lost is shown from here on."""

RATE_WINDOW_SECONDS = 30.0
REFRESH_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Counters:
    """Where a stage stands.

    Attributes:
        stage: What is being done, such as `generate psi`.
        done: Rows accepted (or steps, items) so far.
        target: How many of them end the stage; None where it is not known yet.
        noun: What `done` counts.
        tried: Rows looked at so far, from which the accepted share follows; None where nothing is dropped.
        tokens: Tokens generated (or trained on) so far.
        replicas: Replicas at work.
        wanted: Replicas that there should be.
        spent: Where the time of all replicas went so far.
        note: What else there is to say, such as `loss 0.412`.
    """

    stage: str
    done: int = 0
    target: int | None = None
    noun: str = "rows"
    tried: int | None = None
    tokens: int | None = None
    replicas: int | None = None
    wanted: int | None = None
    spent: Spent | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Rates:
    """Speed over the last half minute, None until it can be told; and shares of the replicas' time that went into waiting."""

    done_per_second: float | None = None
    tokens_per_second: float | None = None
    starved: float = 0.0
    sink_stalled: float = 0.0


class ProgressLine:
    """Prints counters to a stream: one line that refreshes on a terminal, else a line every `interval_seconds`.

    A new stage is always shown at once. Nothing is written after `close`.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float], interval_seconds: float = 10.0) -> None:
        self._stream = stream
        self._clock = clock
        self._terminal = stream.isatty()
        self._interval = REFRESH_SECONDS if self._terminal else interval_seconds
        self._history: deque[tuple[float, Counters]] = deque()
        self._shown_at: float | None = None
        self._shown_width = 0
        self._closed = False

    def show(self, counters: Counters) -> None:
        """Take new counters; print them if it is time to."""
        if self._closed:
            return
        now = self._clock()
        if self._history and self._history[-1][1].stage != counters.stage:
            self._history.clear()
            self._shown_at = None
        self._history.append((now, counters))
        while now - self._history[0][0] > RATE_WINDOW_SECONDS and len(self._history) > 2:
            self._history.popleft()
        if self._shown_at is None or now - self._shown_at >= self._interval:
            self._shown_at = now
            self._write(format_line(counters, rates(self._history)))

    def say(self, text: str) -> None:
        """Print a line that stays, such as the end of a stage."""
        if self._closed:
            return
        self._write(text)
        self._end_line()

    def close(self) -> None:
        """End the line; later calls print nothing. Safe to call twice."""
        if not self._closed:
            self._end_line()
            self._closed = True

    def _write(self, line: str) -> None:
        if self._terminal:
            self._stream.write("\r" + line.ljust(self._shown_width))
            self._shown_width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def _end_line(self) -> None:
        if self._terminal and self._shown_width:
            self._stream.write("\n")
            self._stream.flush()
            self._shown_width = 0


def rates(history: Sequence[tuple[float, Counters]]) -> Rates:
    """Speed between the first and the last of some (seconds, counters) of one stage."""
    (start, first), (end, last) = history[0], history[-1]
    if end <= start:
        return Rates()
    tokens = None if first.tokens is None or last.tokens is None else (last.tokens - first.tokens) / (end - start)
    return Rates((last.done - first.done) / (end - start), tokens, *_waits(first.spent, last.spent))


def _waits(before: Spent | None, now: Spent | None) -> tuple[float, float]:
    """Shares of the time in between that went into starving and into waiting for the writer."""
    if before is None or now is None or now.seconds <= before.seconds:
        return 0.0, 0.0
    time = now.seconds - before.seconds
    return (
        (now.starved_seconds - before.starved_seconds) / time,
        (now.sink_stalled_seconds - before.sink_stalled_seconds) / time,
    )


def format_line(counters: Counters, speed: Rates, width: int = WIDTH) -> str:
    """One line of at most `width` characters; what does not fit is left out, what matters least first.

    For example `generate psi  412/600 rows  1,204 tokens/s  2.6 rows/s  ETA 1m 12s  2/4 replicas`.
    """
    target = "" if counters.target is None else f"/{counters.target:,}"
    texts = {
        "stage": _printable(counters.stage),
        "done": f"{counters.done:,}{target} {counters.noun}",
        "note": counters.note,
        "accepted": f"{100 * counters.done / counters.tried:.1f} % accepted" if counters.tried else "",
        "tokens": "" if speed.tokens_per_second is None else f"{speed.tokens_per_second:,.0f} tokens/s",
        "rate": f"{speed.done_per_second:,.1f} {counters.noun}/s" if speed.done_per_second else "",
        "eta": _eta(counters, speed),
        "replicas": _replicas(counters),
        "trouble": _trouble(speed),
    }
    parts = {name: text for name, text in texts.items() if text}
    for name in LEAST_FIRST:
        if len("  ".join(parts.values())) > width:
            parts.pop(name, None)
    return "  ".join(parts.values())[:width]


def _eta(counters: Counters, speed: Rates) -> str:
    if counters.target is None or not speed.done_per_second or speed.done_per_second < 0:
        return ""
    seconds = max(0, counters.target - counters.done) / speed.done_per_second
    return f"ETA {duration(seconds)}" if math.isfinite(seconds) else ""


def _replicas(counters: Counters) -> str:
    if counters.replicas is None:
        return ""
    if counters.wanted is not None and counters.replicas != counters.wanted:
        return f"{counters.replicas}/{counters.wanted} replicas"
    return f"{counters.replicas} replica{'' if counters.replicas == 1 else 's'}"


def _trouble(speed: Rates) -> str:
    """What keeps replicas from work, where it is worth a word."""
    share, what = max((speed.starved, "starved"), (speed.sink_stalled, "sink-stalled"))
    return f"{100 * share:.0f} % {what}" if share >= WORTH_A_WORD else ""


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def duration(seconds: float | None) -> str:
    """`8.2 s`, `3m 05s`, `2h 07m`, or `not measured`."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600:,}h {whole % 3600 // 60:02d}m"


def percent(share: float | None) -> str:
    """A share of 1 as `93.2 %`, or `not measured`."""
    return NOT_MEASURED if share is None else f"{100 * share:.1f} %"


def interval(bounds: Sequence[float | None] | None) -> str:
    """A pair of shares as `[90.1, 95.8]`, in percent; `not measured` where a bound is missing."""
    if bounds is None:
        return NOT_MEASURED
    known = [bound for bound in bounds if bound is not None]
    return f"[{100 * known[0]:.1f}, {100 * known[1]:.1f}]" if len(known) == 2 else NOT_MEASURED


def count(value: float | None) -> str:
    """A number with thousands separators, or `not measured`."""
    return NOT_MEASURED if value is None else f"{value:,.0f}"


def summary_table(report: dict[str, Any]) -> str:
    """The end of a run in a few lines: arms, stages, wall time and where the report is.

    Args:
        report: What `cluster.report.build_report` wrote to `report.json`.
    """
    arms = [("arm", "accuracy", "95 % interval", "label accuracy", "rows")]
    for name, arm in report["arms"].items():
        labels, rows = (percent(arm["label_accuracy"]), count(arm["rows"])) if "rows" in arm else ("-", "-")
        arms.append((name, percent(arm["accuracy"]), interval(arm["ci95"]), labels, rows))
    stages = [("stage", "seconds")]
    for name, stage in report["stages"].items():
        seconds = stage["seconds"]
        stages.append((name, NOT_MEASURED if seconds is None else f"{seconds:,.1f}"))
    stages.append(("wall", NOT_MEASURED if report["wall"]["seconds"] is None else f"{report['wall']['seconds']:,.1f}"))
    return "\n".join([*columns(arms), "", *columns(stages), "", f"report  {report['run']['uri']}/report.html"])


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table of equally long rows: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
