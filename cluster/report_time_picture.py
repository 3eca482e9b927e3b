"""The picture of where the time of replicas went."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cluster.report_plots import INK, svg

PART_COLORS = {
    "boot": ("#9aa6b2", INK), "starved": ("#c0533f", "white"), "prefill": ("#74a9ae", INK), "decode": ("#23707a", "white"),
    "sink_stalled": ("#c68a35", INK), "redone": ("#8d6bab", "white"), "tail": ("#d9dee3", INK),
}  # fmt: skip
"""Of the parts of the time of replicas, and of the numbers in them: work in the run's own colour, losses in others."""

SHARE_WITH_A_NUMBER = 0.05


def time_picture(times: Mapping[str, Mapping[str, Any]]) -> str | None:
    """One bar an arm: the time of all its replicas, each second in one of the parts."""
    known = {arm: time["seconds"] for arm, time in times.items() if time["seconds"]}
    if not known:
        return None

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for place, seconds in enumerate(known.values()):
            whole, left = sum(seconds.values()), 0.0
            for part, value in seconds.items():
                share, (fill, ink) = value / whole, PART_COLORS[part]
                axis.barh(
                    place, share, left=left, height=0.62, color=fill, label="" if place else part.replace("_", "-")
                )
                if share >= SHARE_WITH_A_NUMBER:
                    axis.text(left + share / 2, place, f"{100 * share:.0f} %", ha="center", va="center", color=ink)
                left += share
        axis.set_yticks(range(len(known)), list(known))
        axis.tick_params(axis="y", labelcolor=INK)
        axis.set_ylim(len(known) - 0.5, -0.5)
        axis.set_xlim(0, 1)
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axis.spines[["left", "bottom"]].set_visible(False)
        axis.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=len(PART_COLORS),
            frameon=False,
            handlelength=1,
            columnspacing=1.2,
        )

    return svg("time", draw, height=0.95 + 0.42 * len(known))
