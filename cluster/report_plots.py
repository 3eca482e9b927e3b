"""The pictures of a report, as SVG text that can stand in a page. A picture without numbers is None."""

import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

INK, MUTED, GRID, LOST = "#22303c", "#667482", "#e4e8ec", "#ead9d3"
COLORS = {
    "base": "#9aa6b2", "fewshot": "#7d8794", "inference-only": "#5d6874", "seeds": "#b58fa5", "direct": "#c68a35", "large": "#8a4f3d",
    "psi": "#23707a", "placebo": "#a3a04a", "small-written": "#5b8c5a", "no-selection": "#6d7fb0", "no-voting": "#8d6bab",
}  # fmt: skip
COLOR_WITHOUT_A_LEVEL = "#74a9ae"

WIDTH_INCHES = 8.6

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

MAX_PANELS = 4
MAX_FUNNELS_IN_A_ROW = 3


def color(arm: str) -> str:
    """The colour of an arm, on the page and in its pictures."""
    return COLORS.get(arm, COLOR_WITHOUT_A_LEVEL)


def accuracy_picture(arms: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Accuracy with its 95 % interval per arm: over all tasks, and for each of the first ones where there are several."""
    tasks = list(dict.fromkeys(task for arm in arms.values() for task in arm["tasks"]))
    panels = {"all tasks": arms}
    if len(tasks) > 1:
        panels |= {task: {name: arm["tasks"].get(task, {}) for name, arm in arms.items()} for task in tasks}
    panels = dict(list(panels.items())[:MAX_PANELS])
    if not any(arm.get("accuracy") is not None for arm in arms.values()):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (title, scores) in zip(axes, panels.items(), strict=True):
            axis.set_title(title)
            _accuracy_panel(axis, scores)

    return svg("accuracy", draw, height=0.75 + 0.42 * len(arms))


def _accuracy_panel(axis: Axes, scores: Mapping[str, Mapping[str, Any]]) -> None:
    for place, (name, score) in enumerate(scores.items()):
        accuracy = score.get("accuracy")
        if accuracy is None:
            axis.text(0.02, place, "not measured", va="center", color=MUTED, fontstyle="italic")
            continue
        low, high = score.get("ci95") or (None, None)
        axis.barh(place, accuracy, height=0.62, color=color(name))
        if low is not None and high is not None:
            axis.plot([low, high], [place, place], color="white", linewidth=3.4, solid_capstyle="butt")
            axis.plot([low, high], [place, place], color=INK, linewidth=1.4, solid_capstyle="butt")
        axis.text(max(accuracy, high or 0.0) + 0.025, place, f"{100 * accuracy:.1f} %", va="center")
    axis.set_yticks(range(len(scores)), list(scores))
    axis.tick_params(axis="y", labelcolor=INK)
    axis.set_ylim(len(scores) - 0.5, -0.5)
    axis.set_xlim(0, 1.28)
    axis.set_xticks([0, 0.5, 1])
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axis.grid(axis="x")
    axis.spines[["left", "bottom"]].set_visible(False)


def contrast_picture(contrasts: Mapping[str, Mapping[str, Any] | None]) -> str | None:
    """Forest plot: psi minus each other arm with its 95 % interval, against the line of no difference."""
    known = {other: found for other, found in contrasts.items() if found is not None}
    if not known:
        return None

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.axvline(0, color=MUTED, linewidth=1)
        for place, (other, found) in enumerate(known.items()):
            axis.plot(found["ci95"], [place, place], color=color(other), linewidth=2.2, solid_capstyle="butt")
            axis.plot(found["difference"], place, "o", color=color(other), markersize=5)
        axis.set_yticks(range(len(known)), [f"psi \u2212 {other}" for other in known])
        axis.tick_params(axis="y", labelcolor=INK)
        axis.set_ylim(len(known) - 0.5, -0.5)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.0f}" if value else "0"))
        axis.set_xlabel("percentage points of accuracy")
        axis.grid(axis="x")
        axis.spines[["left", "bottom"]].set_visible(False)

    return svg("contrasts", draw, height=0.75 + 0.27 * len(known))


def yield_picture(yields: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Rows left after each stage, per arm; what the stage itself dropped is the pale end of its bar."""
    funnels = {arm: funnel(facts) for arm, facts in yields.items()}
    funnels = {arm: steps for arm, steps in funnels.items() if len(steps) > 1}
    if not funnels:
        return None
    columns = min(len(funnels), MAX_FUNNELS_IN_A_ROW)
    rows = -(-len(funnels) // columns)

    def draw(figure: Figure) -> None:
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis, (arm, steps) in zip(axes, funnels.items(), strict=False):
            axis.set_title(arm, color=color(arm), fontweight="bold")
            _funnel_panel(axis, steps, color(arm))
        for axis in axes[len(funnels) :]:
            axis.set_axis_off()

    return svg("yield", draw, height=rows * (0.6 + 0.29 * max(len(steps) for steps in funnels.values())))


def funnel(facts: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """(label, rows left, rows dropped right there) from the first flow to the dataset, of the stages that dropped rows."""
    if not facts["flows"]:
        return []
    steps = [("flows", facts["flows"], 0.0)]
    for name, stage in facts["stages"].items():
        if stage["in"] > stage["out"] and name != "overshoot":
            steps.append((name.replace("_", " "), stage["out"], stage["in"] - stage["out"]))
    if facts["rows"] is not None:
        steps.append(("dataset", facts["rows"], facts["overshoot"] or 0.0))
    return steps


def _funnel_panel(axis: Axes, steps: Sequence[tuple[str, float, float]], color: str) -> None:
    widest = max(left + dropped for _, left, dropped in steps)
    for place, (_, left, dropped) in enumerate(steps):
        axis.barh(place, left, height=0.66, color=color)
        axis.barh(place, dropped, left=left, height=0.66, color=LOST)
        lost = f"  \u2212{dropped:,.0f}" if dropped else ""
        axis.text(left + dropped + 0.02 * widest, place, f"{left:,.0f}{lost}", va="center", fontsize=7.5)
    axis.set_yticks(range(len(steps)), [name for name, _, _ in steps])
    axis.tick_params(axis="y", labelcolor=INK)
    axis.set_ylim(len(steps) - 0.5, -0.5)
    axis.set_xlim(0, 1.3 * widest)
    axis.set_xticks([])
    axis.spines[["left", "bottom"]].set_visible(False)


def throughput_picture(speeds: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Generated tokens a second, and accepted rows, over the time of generation."""
    series = {arm: speed["series"] for arm, speed in speeds.items() if speed["series"]["seconds"]}
    if not series:
        return None

    def draw(figure: Figure) -> None:
        speed_axis, rows_axis = figure.subplots(1, 2)
        for arm, columns in series.items():
            seconds = columns["seconds"]
            speed_axis.plot(seconds, columns["generated_tokens_per_second"], color=color(arm), label=arm)
            rows_axis.plot(seconds, columns["accepted_rows"], color=color(arm), label=arm)
        speed_axis.set_title("generated tokens/s")
        rows_axis.set_title("accepted rows")
        for axis in (speed_axis, rows_axis):
            lines_panel(axis, "seconds of generation")
            axis.set_ylim(bottom=0)
            axis.set_xlim(left=0)
        _legend_beside(rows_axis)

    return svg("throughput", draw, height=2.3)


def lines_panel(axis: Axes, label: str) -> None:
    """The look of a panel of lines: few ticks, numbers as they are."""
    axis.set_xlabel(label)
    axis.grid(axis="y")
    axis.spines["left"].set_visible(False)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(4))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _legend_beside(axis: Axes) -> None:
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=1.4, fontsize=6.5)


def svg(name: str, draw: Callable[[Figure], None], height: float) -> str:
    """Draw a figure as SVG without prologue, metadata or anything that changes from run to run.

    Ids are prefixed with the picture's name, since several pictures share one page.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        draw(figure)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    return re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", svg, count=1)
