"""The picture of how training went."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cluster.report_plots import INK, color, lines_panel, svg

HELD_OUT = {"human": ("o", "held out, human"), "synthetic": ("s", "held out, synthetic")}
"""Source of held-out rows to its mark and name."""


def training_picture(training: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The loss by step with that on held-out rows, and the speed; one colour an arm."""
    series = {arm: facts["series"] for arm, facts in training.items() if facts["series"]["step"]}
    if not series:
        return None

    def draw(figure: Figure) -> None:
        loss_axis, speed_axis = figure.subplots(1, 2, width_ratios=[3, 2])
        for arm, columns in series.items():
            loss_axis.plot(columns["step"], _with_gaps(columns["loss"]), color=color(arm), alpha=0.75, label=arm)
            for source, losses in columns["evaluation"].items():
                mark, _ = HELD_OUT.get(source, HELD_OUT["synthetic"])
                loss_axis.plot(losses["step"], _with_gaps(losses["loss"]), color=color(arm), marker=mark, **_EVALUATED)
            speed_axis.plot(columns["step"], _with_gaps(columns["tokens_per_second"]), color=color(arm), label=arm)
        for axis, title in ((loss_axis, "loss per supervised token, nats"), (speed_axis, "tokens/s")):
            axis.set_title(title)
            lines_panel(axis, "optimizer step")
            axis.set_ylim(bottom=0)
        sources = {source for columns in series.values() for source in columns["evaluation"]}
        _legend(speed_axis, [name for name in HELD_OUT if name in sources])

    return svg("training", draw, height=2.6)


_EVALUATED: dict[str, Any] = {"markersize": 4, "linewidth": 0.9, "linestyle": "--", "markeredgecolor": "white"}


def _legend(axis: Axes, sources: Sequence[str]) -> None:
    """Beside the pictures: the arms, and how the losses of each source are drawn."""
    arms, names = axis.get_legend_handles_labels()
    marks = [Line2D([], [], color=INK, marker=HELD_OUT[source][0], **_EVALUATED) for source in sources]
    axis.legend(
        [*arms, *marks],
        [*names, *(HELD_OUT[source][1] for source in sources)],
        frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=1.8, fontsize=6.5,
    )  # fmt: skip


def _with_gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
