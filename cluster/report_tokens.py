"""Which model processed how many tokens, in a run and for an arm. A total is None as long as one of its sources is missing."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.report_files import RunFiles
from generation.arms import arm_spec

STAGE_ORDER = ("mine", "probe", "draft", "answer", "evaluate")

TOKEN_KINDS = {
    "requests": "requests",
    "prompt": "prompt_tokens",
    "cached": "cached_tokens",
    "generated": "output_tokens",
}

Source = dict[str, Any] | None
"""Counts by request stage, as one stage of the run has noted them."""


def read_tokens(files: RunFiles) -> dict[str, Any]:
    """Counts of `TOKEN_KINDS` by model, and by request stage over both models."""
    sources = _sources(files)
    return {
        "large": _sums(sources, "large"),
        "small": _sums(sources, "small"),
        "by_stage": _by_stage(source for source in sources.values() if source is not None),
    }


def arm_tokens(files: RunFiles, arm: str) -> dict[str, float | None]:
    """Prompt and generated tokens of each model for an arm's dataset, its principles included, and the large model's share of them."""
    spec, sources = arm_spec(arm), _sources(files)
    own = f"principles-{arm}"
    wanted = [own] if spec.principles == "small-written" else ["principles"] if spec.principles != "none" else []
    wanted += [own] if spec.principles == "minus" else []
    parts = {name: sources.get(name) for name in [*wanted, f"generate-{arm}"]}
    sums = {model: _sums(parts, model) for model in ("large", "small")}
    totals = {model: _plus(kinds["prompt"], kinds["generated"]) for model, kinds in sums.items()}
    both = _plus(totals["large"], totals["small"])
    share = totals["large"] / both if both and totals["large"] is not None else None
    return {**totals, "large_share": share}


def _plus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _sources(files: RunFiles) -> dict[str, Source]:
    """By the name of the stage; generating is counted from its metrics, which also hold what an interrupted driver spent."""
    specs = [arm_spec(arm) for arm in files.arms]
    expected = ["principles"] if any(spec.principles != "none" for spec in specs) else []
    expected += [f"principles-{spec.name}" for spec in specs if spec.principles in {"minus", "small-written"}]
    expected += [f"evaluate-{spec.name}" for spec in specs]
    found = [name for name in files.stages if name.startswith(("principles", "evaluate-"))]
    names = dict.fromkeys([*expected, *found])
    sources: dict[str, Source] = {name: files.stages.get(name, {}).get("tokens") for name in names}
    for arm, lines in files.metrics.items():
        sources[f"generate-{arm}"] = lines[-1].get("tokens") if lines else None
    return sources


def _model(source: str, stage: str) -> str:
    """Who processes the requests of a stage."""
    step, _, arm = source.partition("-")
    if step == "generate":
        return arm_spec(arm).writer
    return "large" if stage == "mine" and not _mined_by_small(arm) else "small"


def _mined_by_small(arm: str) -> bool:
    return bool(arm) and arm_spec(arm).principles == "small-written"


def _may_hold(source: str, model: str) -> bool:
    """Whether tokens of a model may stand in a source, so that without it their sum is not known."""
    step, _, arm = source.partition("-")
    if step == "generate":
        return arm_spec(arm).writer == model
    return model == "small" or (step == "principles" and not _mined_by_small(arm))


def _sums(sources: Mapping[str, Source], model: str) -> dict[str, float | None]:
    relevant = {name: source for name, source in sources.items() if _may_hold(name, model)}
    sums: dict[str, float | None] = {}
    for kind, key in TOKEN_KINDS.items():
        counts = [
            counts.get(key)
            for name, source in relevant.items()
            for stage, counts in (source or {}).items()
            if _model(name, stage) == model
        ]
        known = [count for count in counts if count is not None]
        complete = None not in relevant.values() and len(known) == len(counts)
        sums[kind] = sum(known) if complete else None
    return sums


def _by_stage(sources: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    sums: dict[str, Counter[str]] = {}
    for source in sources:
        for stage, values in source.items():
            sums.setdefault(stage, Counter()).update({k: values.get(key) or 0 for k, key in TOKEN_KINDS.items()})
    known = [stage for stage in STAGE_ORDER if stage in sums]
    return {stage: dict(sums[stage]) for stage in [*known, *sorted(set(sums) - set(known))]}
