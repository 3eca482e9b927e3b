"""Makes `compare.json` and `compare.md` from a run folder alone: how its arms differ, and what that cost. Nothing is computed by an engine."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.compare_items import Answered, read_answers
from cluster.compare_text import compare_page
from cluster.report_data import gather
from cluster.report_files import RunFiles, moment, number, open_run, read_object
from cluster.report_tokens import arm_tokens
from generation.arms import arm_spec, in_reading_order
from generation.bootstrap import (
    SAMPLES,
    Contrast,
    Estimate,
    Resampled,
    Rights,
    accuracy,
    contrast,
    gap_recovered,
    holm,
    resample,
    seed_accuracies,
)
from generation.storage import Store

FOCUS = "psi"
"""The arm that the others are compared with."""

CLAIMED = ("direct", "placebo", "small-written", "large")
"""Arms whose contrast with psi is listed also where it was not measured: the paper's claim, and what could explain it otherwise."""

SIGNIFICANT = 0.05

LEFT_OUT = "left-out"
"""Folder of a run with the reason of each arm that a comparison went on without."""


def build_compare(run: Store) -> dict[str, Any]:
    """Write `compare.json` and `compare.md` into a run folder; earlier ones are replaced.

    Returns:
        The content of `compare.json`.

    Raises:
        StorageError: The run does not exist, or one of its files cannot be read.
    """
    result = read_compare(run)
    run.replace("compare.json", (json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    run.replace("compare.md", compare_page(result).encode())
    return result


def read_compare(run: Store) -> dict[str, Any]:
    """The content of `compare.json`. What cannot be told from the run folder is None.

    Raises:
        StorageError: The run does not exist, or one of its files cannot be read.
    """
    files = open_run(run)
    report = gather(files)
    seed = int(number(files.settings.get("run", {}), "seed") or 0)
    compared = _compare(read_answers(run, files.arms, FOCUS), seed)
    asked = files.settings.get("compare", {}).get("arms", ())
    return {
        "format_version": 1,
        "run": _run(files, report),
        "method": {"resamples": SAMPLES, "rng_seed": seed, "interval": 0.95, "significant": SIGNIFICANT},
        "arms": {arm: _arm(files, report, arm, compared) for arm in files.arms},
        "not_run": [arm for arm in in_reading_order(asked) if arm not in files.arms],
        "contrasts": _contrasts(compared),
        "yield": report["yield"],
        "tokens": report["tokens"],
        "energy": report["energy"],
    }


@dataclass(frozen=True, slots=True)
class _Compared:
    """What the arms answered, and the resamples of it.

    Attributes:
        answers: As read.
        whole: Over tasks and items; None where no arm was evaluated.
        tasks: Each task on its own, of which only items are drawn.
    """

    answers: Answered
    whole: Resampled | None
    tasks: dict[str, Resampled]


def _compare(answers: Answered, seed: int) -> _Compared:
    rights = answers.rights
    tasks = next(iter(rights.values()), {})
    alone = {task: resample({arm: {task: of[task]} for arm, of in rights.items()}, seed) for task in tasks}
    return _Compared(answers, resample(rights, seed) if rights else None, alone)


def _run(files: RunFiles, report: Mapping[str, Any]) -> dict[str, Any]:
    run, ends = report["run"], [_end(facts) for facts in files.stages.values()]
    training = files.settings.get("training", {})
    return {
        "name": run["name"],
        "description": run.get("description"),
        "identity": run["identity"],
        "seed": run.get("seed"),
        "accepted_rows_per_task": number(files.settings.get("generation", {}), "accepted_rows"),
        "max_steps": number(training, "max_steps"),
        "tasks": list(run["tasks"]),
        "finished": max((end for end in ends if end is not None), default=None),
        "seconds": report["wall"]["seconds"],
        "device": report["machine"]["device"],
        "versions": report["machine"]["versions"],
    }


def _end(facts: Mapping[str, Any]) -> float | None:
    """When a stage ended, in seconds since 1970."""
    started, seconds = moment(facts.get("started")), number(facts, "seconds")
    return None if started is None or seconds is None else started + seconds


def _arm(files: RunFiles, report: Mapping[str, Any], arm: str, compared: _Compared) -> dict[str, Any]:
    spec, summary = arm_spec(arm), files.summaries.get(arm, {})
    left_out = str(read_object(files.run, f"{LEFT_OUT}/{arm}.json").get("reason", ""))
    facts: dict[str, Any] = {"meaning": spec.meaning, "missing": _missing(arm, summary, compared, left_out)}
    facts |= _scores(arm, compared)
    if spec.trained:
        facts |= {"rows": report["arms"][arm]["rows"], "steps": report["training"][arm]["steps"]}
    if spec.writes:
        facts |= {**_labels(summary), **_variety(summary), "tokens": arm_tokens(files, arm)}
    facts["tasks"] = {task: _task(arm, task, summary, compared) for task in compared.tasks}
    return facts


def _missing(arm: str, summary: Mapping[str, Any], compared: _Compared, left_out: str) -> list[str]:
    """What of an arm is not there, in words."""
    missing = [compared.answers.why_not[arm]] if arm in compared.answers.why_not else []
    if arm_spec(arm).trained and not summary:
        missing.append(f"no sealed dataset{f': {left_out}' if left_out else ''}")
    return missing


def _scores(arm: str, compared: _Compared) -> dict[str, Any]:
    rights, whole = compared.answers.rights, compared.whole
    if whole is None or arm not in rights:
        return {**_estimate("accuracy", None), "items": None, "seed_accuracies": None, "gap_recovered": None}
    ends = {"base", "large"}
    gap = gap_recovered(whole, arm, "base", "large") if ends <= set(rights) - {arm} else None
    return {
        **_estimate("accuracy", accuracy(whole, arm)),
        "items": sum(of.shape[1] for of in rights[arm].values()),
        "seed_accuracies": seed_accuracies(rights[arm]),
        "gap_recovered": None if gap is None else _estimate("share", gap),
    }


def _estimate(name: str, found: Estimate | None) -> dict[str, Any]:
    return {name: None, "ci95": [None, None]} if found is None else {name: found.value, "ci95": [found.low, found.high]}


def _labels(facts: Mapping[str, Any]) -> dict[str, float | None]:
    """Shares of answers that equal the oracle's: first answers of all rows that were voted on, and answers of the rows kept."""
    return {name: number(facts, name) for name in ("label_accuracy_first", "label_accuracy")}


def _variety(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Means over tasks."""
    tasks = summary.get("tasks", {}).values()
    found = {name: [number(task, name) for task in tasks] for name in ("distinct_2", "cell_entropy_bits")}
    known = {name: [value for value in values if value is not None] for name, values in found.items()}
    return {name: sum(known[name]) / len(known[name]) if known[name] else None for name in known}


def _task(arm: str, task: str, summary: Mapping[str, Any], compared: _Compared) -> dict[str, Any]:
    found = accuracy(compared.tasks[task], arm) if arm in compared.answers.rights else None
    facts = _estimate("accuracy", found)
    return facts | _labels(summary.get("tasks", {}).get(task, {})) if arm_spec(arm).writes else facts


def _contrasts(compared: _Compared) -> dict[str, Any]:
    """`psi` minus each other arm, by that arm's name; the p values of all of them are corrected together."""
    rights = compared.answers.rights
    others = [*CLAIMED, *(arm for arm in rights if arm not in {FOCUS, *CLAIMED})]
    if compared.whole is None or FOCUS not in rights:
        return dict.fromkeys(others)
    found = {arm: contrast(compared.whole, FOCUS, arm) for arm in others if arm in rights}
    adjusted = holm({arm: of.p for arm, of in found.items()})
    return {arm: _contrast(arm, found[arm], adjusted[arm], rights) if arm in found else None for arm in others}


def _contrast(other: str, found: Contrast, p_holm: float, rights: Mapping[str, Rights]) -> dict[str, Any]:
    above = [float(np.mean(rights[FOCUS][task])) > float(np.mean(rights[other][task])) for task in rights[other]]
    return {
        **_estimate("difference", found.difference),
        "p": found.p,
        "p_holm": p_holm,
        "tasks_above": sum(above),
        "tasks": len(above),
        "reading": reading(other, found.difference, p_holm, _models(other, rights)),
    }


def _models(arm: str, rights: Mapping[str, Rights]) -> int:
    return len(next(iter(rights[arm].values()))) if arm_spec(arm).trained else 0


def reading(other: str, difference: Estimate, p_holm: float, models: int) -> str:
    """A contrast in a sentence; `models` is how many of the other arm's were trained, 0 where it trains none."""
    points = f"{FOCUS} minus {other} is {100 * difference.value:+.1f} points"
    if difference.covers_zero:
        return f"{points}, and the interval covers 0: no difference was shown."
    side, better = ("above", FOCUS) if difference.low > 0 else ("below", other)
    if p_holm > SIGNIFICANT:
        return f"{points}; the interval is {side} 0, but corrected for the number of arms no difference was shown."
    once = "" if models != 1 else " in one training of it, so that chance in training is not excluded"
    return f"{points}, and the interval is {side} 0: {better} was better{once}."
