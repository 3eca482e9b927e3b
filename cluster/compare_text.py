"""A comparison of arms as Markdown for a critical reader, and as a short table for a terminal. Computes nothing."""

import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cluster.compare_tables import (
    LABEL_NOTE,
    Table,
    energy_lines,
    label_table,
    markdown,
    shown,
    token_lines,
    token_table,
    yield_table,
)
from cluster.progress import columns, count, duration, interval, percent

WIDTH = 79


def compare_page(result: Mapping[str, Any]) -> str:
    """The content of `compare.md`.

    Args:
        result: The content of `compare.json`.
    """
    run = result["run"]
    parts = [
        f"# {run['name'] or 'Unnamed run'}: arms compared",
        *([_prose(run["description"])] if run["description"] else []),
        _prose(_provenance(result)),
        _prose(_method(result)),
        "## Accuracy",
        _accuracy_table(result["arms"]),
        "\n".join(f"- {name}: {arm['meaning']}" for name, arm in result["arms"].items()),
        *_absent(result),
        "## psi minus the other arms",
        _contrast_table(result["contrasts"]),
        "\n".join(f"- {_reading(other, found)}" for other, found in result["contrasts"].items()),
        "## Labels, yield and variety",
        label_table(result["arms"]),
        _prose(LABEL_NOTE),
        yield_table(result["yield"]),
        "## Tokens and energy",
        token_table(result["arms"], result["energy"]),
        *[_prose(line) for line in [token_lines(result["tokens"]), *energy_lines(result["energy"])]],
        "## Task by task",
        _prose(
            "Here only items are drawn. Where an arm has all items of a task right, or none, its interval has no width; of n items, a share of "
            "about 3/n the other way is then still possible."
        ),
        *_task_tables(result),
        _prose(
            "Made by `psi compare` from the files of the run folder; no number on this page was written by hand. `compare.json` in the "
            "run folder holds all of them, unrounded."
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _prose(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _provenance(result: Mapping[str, Any]) -> str:
    run = result["run"]
    versions = ", ".join(f"{name} {version}" for name, version in (run["versions"] or {}).items())
    ended = run["finished"]
    date = shown(ended and f"{datetime.fromtimestamp(ended, UTC):%Y-%m-%d %H:%M} UTC")
    counts = sorted({len(arm["seed_accuracies"]) for arm in result["arms"].values() if arm["seed_accuracies"]})
    return (
        f"Recipe identity `{shown(run['identity'])}`, run seed {shown(run['seed'])}. Last stage ended: {date}; from first start to last end: "
        f"{duration(run['seconds'])}. Device: {shown(run['device'])}. Versions: {shown(versions)}. {len(run['tasks'])} tasks; "
        f"rows per task and arm: {count(run['accepted_rows_per_task'])}; trained models per arm: {shown(' or '.join(map(str, counts)))}. "
        f"{_equality(result['arms'])}"
    )


def _equality(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether the arms that are compared had the same rows and steps."""
    writing = {name: arm for name, arm in arms.items() if "tokens" in arm}
    sizes = {(arm["rows"], arm["steps"]) for arm in writing.values()}
    if len(sizes) == 1 and None not in next(iter(sizes)):
        rows, steps = next(iter(sizes))
        return f"Each arm that writes rows was trained on {rows:,} of them for {steps:,} steps."
    return "The arms that write rows were not all trained on as many rows for as many steps: see the table."


def _method(result: Mapping[str, Any]) -> str:
    method = result["method"]
    smallest = 2 / (method["resamples"] + 1)
    return (
        "Accuracy is the mean over tasks of the share of held-out items answered rightly, trained models of an arm averaged. Intervals are "
        f"95 % percentile intervals of a paired bootstrap: {method['resamples']:,} resamples of tasks, and of items within them, the same for "
        "all arms. They say what other tasks and items would give, not what another training would; for that, the lowest and the highest "
        "accuracy of a single model are given. With few tasks the intervals are approximate, and too narrow where the tasks differ much. "
        f"p is two-sided and at least {smallest:.1g}; Holm's p is corrected for all contrasts of its table. Differences are percentage points."
    )


def _accuracy_table(arms: Mapping[str, Mapping[str, Any]]) -> str:
    rows: Table = [("arm", "accuracy", "95 % interval", "models", "single models", "gap recovered", "rows", "steps")]
    for name, arm in arms.items():
        seeds, gap = arm["seed_accuracies"], arm["gap_recovered"]
        rows.append(
            (
                name,
                percent(arm["accuracy"]),
                interval(arm["ci95"]),
                str(len(seeds)) if seeds else "-",
                interval((min(seeds), max(seeds))) if seeds and len(seeds) > 1 else "-",
                f"{gap['share']:.2f} [{gap['ci95'][0]:.2f}, {gap['ci95'][1]:.2f}]" if gap else "-",
                count(arm["rows"]) if "rows" in arm else "-",
                count(arm["steps"]) if "steps" in arm else "-",
            )
        )
    note = (
        "Gap recovered is (arm - base) / (large - base); it is left out where one of the two was not measured or the interval of large - base "
        "covers 0."
    )
    return f"{markdown(rows)}\n\n{_prose(note)}"


def _absent(result: Mapping[str, Any]) -> list[str]:
    lines = [f"- {name}: {', '.join(arm['missing'])}" for name, arm in result["arms"].items() if arm["missing"]]
    lines += [f"- {name}: not run" for name in result["not_run"]]
    return ["Not complete, and so not compared or only in part:", "\n".join(lines)] if lines else []


def _contrast_table(contrasts: Mapping[str, Mapping[str, Any] | None]) -> str:
    rows: Table = [("psi minus", "points", "95 % interval", "tasks above 0", "p", "Holm's p", "interval is")]
    for other, found in contrasts.items():
        if found is None:
            rows.append((other, "not measured", "-", "-", "-", "-", "-"))
            continue
        tasks = f"{found['tasks_above']} of {found['tasks']}"
        rows.append((other, *_difference(found), tasks, _p(found["p"]), _p(found["p_holm"]), _where(found["ci95"])))
    return markdown(rows)


def _difference(found: Mapping[str, Any]) -> tuple[str, str]:
    low, high = found["ci95"]
    return f"{100 * found['difference']:+.1f}", f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def _p(value: float) -> str:
    return f"{value:.4f}"


def _where(bounds: Sequence[float]) -> str:
    return "above 0" if bounds[0] > 0 else "below 0" if bounds[1] < 0 else "covers 0"


def _reading(other: str, found: Mapping[str, Any] | None) -> str:
    return f"psi minus {other} was not measured." if found is None else found["reading"]


def _task_tables(result: Mapping[str, Any]) -> list[str]:
    """A table for each task: reads well as plain text, which one of arms by tasks would not."""
    tasks = dict.fromkeys(task for arm in result["arms"].values() for task in arm["tasks"])
    return [f"### {task}\n\n{_task_table(task, result['arms'])}" for task in tasks] or [shown(None)]


def _task_table(task: str, arms: Mapping[str, Mapping[str, Any]]) -> str:
    rows: Table = [("arm", "accuracy", "95 % interval", "first answers true", "labels true")]
    for name, arm in arms.items():
        found = arm["tasks"].get(task, {"accuracy": None, "ci95": None})
        labels = [percent(found[key]) if key in found else "-" for key in ("label_accuracy_first", "label_accuracy")]
        rows.append((name, percent(found["accuracy"]), interval(found["ci95"]), *labels))
    return markdown(rows)


def compare_table(result: Mapping[str, Any]) -> str:
    """Arms, contrasts and the energy ratio in at most 79 columns.

    Args:
        result: The content of `compare.json`.
    """
    arms: Table = [("arm", "accuracy", "95 % interval", "models", "labels true")]
    for name, arm in result["arms"].items():
        labels = percent(arm["label_accuracy"]) if "label_accuracy" in arm else "-"
        models = str(len(arm["seed_accuracies"])) if arm["seed_accuracies"] else "-"
        arms.append((name, percent(arm["accuracy"]), interval(arm["ci95"]), models, labels))
    contrasts: Table = [("psi minus", "points", "95 % interval", "Holm's p", "interval is")]
    for other, found in result["contrasts"].items():
        measured = (*_difference(found), _p(found["p_holm"]), _where(found["ci95"])) if found else None
        contrasts.append((other, *(measured or ("not measured", "-", "-", "-"))))
    energy = textwrap.wrap(energy_lines(result["energy"])[0], WIDTH)
    return "\n".join([*columns(arms), "", *columns(contrasts), "", *energy])
