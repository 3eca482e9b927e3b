"""Makes `report.json` and `report.html` from a run folder alone. The page needs no network and no other file."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cluster.energy_report import UNITS as ENERGY_UNITS
from cluster.progress import NOT_MEASURED, count, duration, interval, percent
from cluster.report_data import gather
from cluster.report_files import open_run, read_object
from cluster.report_plots import (
    accuracy_picture,
    color,
    contrast_picture,
    throughput_picture,
    yield_picture,
)
from cluster.report_principles import DRAFT_ESTIMATES, SOLVE_ESTIMATES
from cluster.report_time_picture import time_picture
from cluster.report_training_picture import training_picture
from generation.arms import arm_spec
from generation.storage import Store

UNITS = {
    "accepted_rows_per_second": "rows/s",
    "accepted_tokens_per_gpu_hour": "tokens per GPU-hour",
    "accepted_tokens_per_second": "tokens/s",
    "achievable": "share of 1",
    "accuracy": "share of 1",
    "bytes": "bytes",
    "cached": "tokens",
    "ci95": "share of 1",
    "counted_prefix_hit_share": "share of 1",
    "data_wait": "share of 1",
    "difference": "share of 1",
    "files": "files",
    "final_loss": "nats per supervised token",
    "format_version": "version",
    "generated": "tokens",
    "generated_tokens_per_second": "tokens/s",
    "gpu_hours": "GPU-hours",
    "held_out_loss": "nats per supervised token",
    "ideal": "share of 1",
    "items": "evaluation items",
    "kv_use": "share of 1",
    "label_accuracy": "share of 1",
    "loss": "nats per supervised token",
    "mfu": "share of 1",
    "p": "probability",
    "padding": "share of 1",
    "p_holm": "probability",
    "preemptions": "requests",
    "prefix_hit_share": "share of 1",
    "probes": "seeds or drafts",
    "prompt": "tokens",
    "published_step": "optimizer steps",
    "requests": "requests",
    "restarts": "restarts",
    "seed": "seed",
    "share": "share of 1",
    "solve_accuracy": "share of 1",
    "step": "optimizer steps",
    "steps": "optimizer steps",
    "supervised": "share of 1",
    "supervised_tokens": "tokens",
    "support": "seeds",
    "tokens": "tokens",
    "tokens_per_second": "tokens/s",
    "utility": "standard deviations",
    "value": "difference of shares",
}
"""Unit of a number by the last name of its path."""

SECTION_UNITS = {
    "arms": "rows",
    "contrasts": "tasks",
    "dataset": "rows",
    "energy": "J",
    "principles": "principles",
    "privacy": "tokens",
    "stages": "engines",
    "throughput": "rows",
    "time": "s",
    "yield": "rows",
}
"""Unit of the other numbers, by section."""

SOURCES = {
    "arms": "evaluation/<arm>.json, dataset/round-0/summary.json",
    "contrasts": "compare.json",
    "dataset": "dataset/round-0/SEALED.json and the files that it lists",
    "yield": "metrics/generation-*.jsonl, dataset/round-0/summary.json",
    "throughput": "metrics/generation-*.jsonl",
    "time": "metrics/generation-*.jsonl",
    "principles": "principles/round-0.arrow",
    "training": "metrics/training.jsonl, stages/train*.json",
    "tokens": "stages/*.json, metrics/generation-*.jsonl",
    "privacy": "recipe.json, privacy/*.jsonl, and the counts in rows/round-0",
    "energy": "energy/*.jsonl, recipe.json",
    "stages": "stages/*.json",
    "wall": "stages/*.json",
    "machine": "stages/*.json",
    "run": "recipe.json",
}
"""Where a section's numbers come from."""

FEW_JOULES = 100
"""Less is shown with three digits, more as whole joules."""

PICTURES = {
    "contrasts": (contrast_picture, "contrasts"),
    "accuracy": (accuracy_picture, "arms"),
    "yield": (yield_picture, "yield"),
    "throughput": (throughput_picture, "throughput"),
    "time": (time_picture, "time"),
    "training": (training_picture, "training"),
}


def build_report(run: Store) -> str:
    """Write `report.json` and `report.html` into a run folder; an earlier report is replaced.

    Returns:
        The URI of the page.

    Raises:
        StorageError: The run does not exist, or one of its files cannot be read.
    """
    report = read_report(run)
    run.replace("report.json", (json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    run.replace("report.html", render(report).encode())
    return run.uri_of("report.html")


def read_report(run: Store) -> dict[str, Any]:
    """The content of `report.json`: all numbers, the unit of each, and what is missing.

    Raises:
        StorageError: The run does not exist, or one of its files cannot be read.
    """
    report = gather(open_run(run)) | {"contrasts": read_object(run, "compare.json").get("contrasts", {})}
    leaves = list(_leaves(report, ()))
    missing = {".".join(path): SOURCES[path[0]] for path, value in leaves if value is None}
    units = {".".join(path): unit(path) for path, value in leaves if _is_number(value)}
    return {**report, "missing": missing, "units": units}


def unit(path: tuple[str, ...]) -> str:
    """The unit of the number at a path of `report.json`."""
    if path[0] == "yield" and "reasons" in path:
        return "rows"
    if path[0] == "time" and "tokens" in path:
        return "tokens"
    if path[0] == "energy" and path[-1] in ENERGY_UNITS:
        return ENERGY_UNITS[path[-1]]
    if path[-1].endswith("seconds"):
        return "s"
    return UNITS.get(path[-1]) or SECTION_UNITS[path[0]]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value with its path; the numbers of a list share the list's path, other items are numbered."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, (*path, str(key)))
    elif isinstance(value, list):
        for place, part in enumerate(value):
            yield from _leaves(part, path if part is None or _is_number(part) else (*path, str(place)))
    else:
        yield path, value


def render(report: Mapping[str, Any]) -> str:
    """The page of a report. All text of the run is escaped; only our own pictures are not."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count,
        "duration": duration,
        "interval": interval,
        "joules": joules,
        "percent": percent,
        "percent_or": percent_or,
        "count_or": count_or,
        "points": points,
        "plain": plain,
    }
    pictures = {name: _picture(draw(report[section])) for name, (draw, section) in PICTURES.items()}
    return environment.get_template("report.html.jinja").render(
        report=report,
        pictures=pictures,
        lede=lede(report),
        meanings={arm: arm_spec(arm).meaning for arm in report["arms"]},
        estimates={**SOLVE_ESTIMATES, **DRAFT_ESTIMATES},
        colors={arm: color(arm) for arm in report["arms"]},
    )


def lede(report: Mapping[str, Any]) -> str:
    """One sentence on what the run is: the recipe's own, or one made of its tasks."""
    run = report["run"]
    if run.get("description"):
        return run["description"]
    tasks = ", ".join(run["tasks"]) or "unknown tasks"
    return f"A model is trained on instances that a small model wrote for {tasks}, following principles of a large one."


def _picture(svg: str | None) -> Markup | None:
    # Safe: matplotlib draws text as outlines and escapes what it writes into attributes and comments.
    return None if svg is None else Markup(svg)


def points(share: float | None) -> str:
    """A difference of shares as `+12.5`, in percentage points."""
    return NOT_MEASURED if share is None else f"{100 * share:+.1f}"


def percent_or(value: float | str | None) -> str:
    """A share, or the word that stands in its place."""
    return value if isinstance(value, str) else percent(value)


def count_or(value: float | str | None) -> str:
    """A number, or the word that stands in its place."""
    return value if isinstance(value, str) else count(value)


def joules(value: float | None) -> str:
    """Energy as `1,234 J`."""
    return NOT_MEASURED if value is None else f"{value:,.0f} J" if value >= FEW_JOULES else f"{value:,.3g} J"


def plain(value: Any) -> str:
    """Any other value of the run as text."""
    if isinstance(value, float):
        return f"{value:,.4g}"
    return NOT_MEASURED if value is None else str(value)
