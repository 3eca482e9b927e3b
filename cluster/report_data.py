"""The numbers of a report, made from a run's files. A number whose file is not there is None."""

from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq

from cluster.energy_report import energy_of
from cluster.private_sends import read_private_sends
from cluster.report_files import RunFiles, moment, number, read_object, total
from cluster.report_principles import principles_section
from cluster.report_time import read_time
from cluster.report_tokens import read_tokens
from cluster.report_training import read_training
from cluster.report_yield import generation_speed, read_yield
from generation.dataset import DATASET_FOLDER
from generation.dataset_seal import newest_seal
from generation.storage import Store


def gather(files: RunFiles) -> dict[str, Any]:
    """All sections of `report.json` but `units` and `missing`."""
    trained, generating = files.trained_arms, files.generating_arms
    return {
        "format_version": 1,
        "run": _run(files),
        "arms": {arm: _arm(files, arm) for arm in files.arms},
        "dataset": {arm: _dataset(files.folder(arm)) for arm in trained},
        "yield": {arm: read_yield(files.metrics[arm], files.summaries[arm]) for arm in generating},
        "principles": principles_section(files.run),
        "training": {arm: read_training(files, arm) for arm in trained},
        "tokens": read_tokens(files),
        "privacy": read_private_sends(files),
        "throughput": {arm: generation_speed(files.metrics[arm]) for arm in generating},
        "time": {arm: read_time(files, arm) for arm in generating},
        "energy": energy_of(files.run),
        "stages": {name: _stage(facts) for name, facts in files.stages.items()},
        "wall": _wall(files.stages),
        "machine": _machine(files),
    }


def _run(files: RunFiles) -> dict[str, Any]:
    run = files.settings.get("run", {})
    tasks = files.settings.get("tasks", [])
    facts = {"uri": files.run.uri, "name": run.get("name"), "identity": _identity(files.recipe)}
    optional = {"description": run.get("description"), "seed": run.get("seed")}
    return {
        **facts,
        **{key: value for key, value in optional.items() if value is not None},
        "tasks": {task["name"]: {key: task.get(key) for key in ("description", "privacy")} for task in tasks},
    }


def _identity(recipe: Mapping[str, Any]) -> str | None:
    for key in ("identity_hash", "identity"):
        if isinstance(recipe.get(key), str):
            return recipe[key]
    return None


def _arm(files: RunFiles, arm: str) -> dict[str, Any]:
    scores = read_object(files.run, f"evaluation/{arm}.json")
    facts = {**_score(scores), "tasks": {name: _score(task) for name, task in (scores.get("tasks") or {}).items()}}
    if arm not in files.summaries:
        return facts
    summary = files.summaries[arm]
    return {**facts, "label_accuracy": number(summary, "label_accuracy"), "rows": total(summary.get("rows"))}


def _score(scores: Mapping[str, Any]) -> dict[str, Any]:
    bounds = scores.get("ci95") or [None, None]
    low, high = bounds[0], bounds[1]
    return {"accuracy": number(scores, "accuracy"), "ci95": [low, high], "items": number(scores, "items")}


def _dataset(folder: Store) -> dict[str, Any]:
    """The files that the newest seal lists, their rows counted from the files themselves."""
    dataset = folder.child(DATASET_FOLDER)
    names = [file["name"] for file in (newest_seal(dataset) or {"files": []})["files"]]
    if not names or not all(dataset.exists(name) for name in names):
        return {"rows": None, "files": None, "bytes": None}
    rows = stored = 0
    for name in names:
        with dataset.filesystem.open_input_file(dataset.path(name)) as stream:
            rows += pq.read_metadata(stream).num_rows
            stored += stream.size()
    return {"rows": rows, "files": len(names), "bytes": stored}


def _stage(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"started": facts.get("started"), "seconds": number(facts, "seconds"), "engines": facts.get("engines", {})}


def _wall(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """From the start of the first stage to the end of the last, and the sum of the stages."""
    spans = [(moment(facts.get("started")), number(facts, "seconds")) for facts in stages.values()]
    whole = [(start, seconds) for start, seconds in spans if start is not None and seconds is not None]
    if not whole:
        return {"seconds": None, "stage_seconds": None}
    elapsed = max(start + seconds for start, seconds in whole) - min(start for start, _ in whole)
    return {"seconds": round(elapsed, 3), "stage_seconds": round(sum(seconds for _, seconds in whole), 3)}


def _machine(files: RunFiles) -> dict[str, Any]:
    """What the driver noted in its stages of the programs and the hardware."""
    notes: dict[str, Any] = {"versions": None, "device": None}
    for facts in [files.recipe, *files.stages.values()]:
        notes |= {key: facts[key] for key in notes if facts.get(key)}
    return notes
