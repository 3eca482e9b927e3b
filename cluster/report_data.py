"""The numbers of a report, made from a run's files. A number whose file is not there is None."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from cluster.report_files import RunFiles, moment, number, read_metrics, read_object, total
from cluster.report_yield import generation_speed, read_yield
from generation.principles.model import Principle, principles_file, read_principles
from generation.storage import Store

LARGE_STAGES = frozenset({"mine"})
"""What the tokens of the large model are booked under; all other stages are the small model's."""

TOKEN_KINDS = {
    "requests": "requests",
    "prompt": "prompt_tokens",
    "cached": "cached_tokens",
    "generated": "output_tokens",
}


def gather(files: RunFiles) -> dict[str, Any]:
    """All sections of `report.json` but `units` and `missing`."""
    arms = files.generating_arms
    return {
        "format_version": 1,
        "run": _run(files),
        "arms": {arm: _arm(files, arm) for arm in files.arms},
        "dataset": {arm: _dataset(files.folder(arm)) for arm in arms},
        "yield": {arm: read_yield(files.metrics[arm], files.summaries[arm]) for arm in arms},
        "principles": _principles(files.run),
        "training": {arm: _training(files, arm) for arm in arms},
        "tokens": _tokens(files),
        "throughput": {arm: generation_speed(files.metrics[arm]) for arm in arms},
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
    """Counted from the files themselves, not from what anybody says of them."""
    names = [name for name in folder.names("dataset/round-0") if name.endswith(".parquet")]
    if not names:
        return {"rows": None, "files": None, "bytes": None}
    rows = stored = 0
    for name in names:
        with folder.filesystem.open_input_file(folder.path(f"dataset/round-0/{name}")) as stream:
            rows += pq.read_metadata(stream).num_rows
            stored += stream.size()
    return {"rows": rows, "files": len(names), "bytes": stored}


def _principles(run: Store) -> dict[str, Any]:
    """Counts of all candidates; texts of the selected ones only, since a retired one may quote a seed."""
    if not run.exists(principles_file(0)):
        return {"candidates": None, "selected": None, "counts": None}
    candidates = read_principles(run)
    selected = [_principle(p) for p in candidates if p.status == "active"]
    return {
        "candidates": len(candidates),
        "selected": sorted(selected, key=lambda row: (row["task"], row["level"])),
        "counts": {
            "status": dict(Counter(p.status for p in candidates).most_common()),
            "reason": dict(Counter(p.reason for p in candidates if p.reason).most_common()),
            "level": dict(Counter(p.level for p in candidates).most_common()),
        },
    }


def _principle(p: Principle) -> dict[str, Any]:
    return {
        "task": p.task,
        "level": p.level,
        "kind": p.kind,
        "text": p.text,
        "support": None if p.model == "file" else len(p.support),
        "solve_accuracy": p.solve_accuracy,
        "solve_gain": p.solve_gain,
        "solve_gain_ci95": [p.solve_gain_low, p.solve_gain_high],
    }


def _training(files: RunFiles, arm: str) -> dict[str, Any]:
    """The curve from the metrics, the totals from the stage's own summary where there is one."""
    lines = read_metrics(files.folder(arm), "metrics/training.jsonl")
    steps = {line["step"]: line for line in lines if number(line, "step") is not None}
    curve = [steps[step] for step in sorted(steps)]
    facts = arm_stage(files.stages, "train", arm) or {}
    last = curve[-1] if curve else {}
    return {
        "steps": number(facts, "steps") if "steps" in facts else number(last, "step"),
        "tokens": number(facts, "tokens"),
        "supervised_tokens": number(facts, "supervised_tokens"),
        "final_loss": number(facts, "final_loss") if "final_loss" in facts else number(last, "loss"),
        "seconds": number(facts, "seconds"),
        "restarts": number(facts, "restarts"),
        "series": {"step": [line["step"] for line in curve], "loss": [number(line, "loss") for line in curve]},
    }


def arm_stage(stages: Mapping[str, dict[str, Any]], kind: str, arm: str) -> dict[str, Any] | None:
    """The facts of an arm's stage: named `<kind>-<arm>`, or `<kind>` where that arm is the only one."""
    for name, facts in stages.items():
        words = re.split(r"[-_]", name)
        if words[0] == kind and (facts.get("arm") == arm or words[1:] == [arm]):
            return facts
    return stages.get(kind) if arm == "psi" else None


def _stage(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"started": facts.get("started"), "seconds": number(facts, "seconds")}


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


def _tokens(files: RunFiles) -> dict[str, Any]:
    """Tokens by model. A total is None as long as one of its sources is missing: a part of a sum is no sum."""
    sources = _token_sources(files)
    known = [source for source in sources.values() if source is not None]
    large = [sources["principles"]]
    return {
        "large": _token_sum(large, large=True),
        "small": _token_sum(list(sources.values()), large=False),
        "by_stage": _token_sum_by_stage(known),
    }


def _token_sources(files: RunFiles) -> dict[str, dict[str, Any] | None]:
    """Request stage to counts, by where it stands; generating is counted from the manifest, so not from its stage file."""
    sources: dict[str, dict[str, Any] | None] = {"principles": files.stages.get("principles", {}).get("tokens")}
    for arm, lines in files.metrics.items():
        sources[f"generate-{arm}"] = lines[-1].get("tokens") if lines else None
    evaluations = {name: facts.get("tokens") for name, facts in files.stages.items() if name.startswith("eval")}
    return sources | (evaluations or {"evaluate": None})


def _token_sum(sources: Sequence[Mapping[str, Any] | None], large: bool) -> dict[str, float | None]:
    sums: dict[str, float | None] = {}
    for kind, key in TOKEN_KINDS.items():
        counts = [
            None if source is None else [v.get(key) for s, v in source.items() if (s in LARGE_STAGES) == large]
            for source in sources
        ]
        flat = [count for part in counts if part is not None for count in part]
        sums[kind] = None if None in counts or None in flat else sum(flat)
    return sums


def _token_sum_by_stage(sources: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    sums: dict[str, Counter[str]] = {}
    for source in sources:
        for stage, values in source.items():
            sums.setdefault(stage, Counter()).update({k: values.get(key) or 0 for k, key in TOKEN_KINDS.items()})
    return {stage: dict(counts) for stage, counts in sums.items()}
