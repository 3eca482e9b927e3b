"""How training went: from the line of each optimizer step, and what its stage has recorded of the whole job."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cluster.report_files import RunFiles, number, read_metrics
from cluster.report_time import NOT_APPLICABLE

OF_THE_STAGE = ("restarts", "published_step", "tokens_per_second", "padding", "data_wait", "supervised")
"""What a stage records of its job under the same name."""

Line = Mapping[str, Any]


def read_training(files: RunFiles, arm: str) -> dict[str, Any]:
    """The section of an arm; a step that was done again after a restart counts once."""
    lines = read_metrics(files.folder(arm), "metrics/training.jsonl")
    steps = {line["step"]: line for line in lines if number(line, "step") is not None}
    curve = [steps[step] for step in sorted(steps)]
    sums = {key: _sum(number(line, key) for line in curve) for key in ("tokens", "supervised_tokens", "seconds")}
    losses = [number(line, "loss") for line in curve]
    stage = files.stages.get(f"train-{arm}", {})
    return {
        "steps": len(curve) or None,
        **sums,
        "final_loss": losses[-1] if losses else None,
        **{name: number(stage, name) for name in OF_THE_STAGE},
        "mfu": NOT_APPLICABLE if "mfu" in stage and stage["mfu"] is None else number(stage, "mfu"),
        "sources": _sources(_object_in(stage, "mix"), _evaluation(steps.get(stage.get("published_step"), {}))),
        "series": {
            "step": [line["step"] for line in curve],
            "loss": losses,
            "tokens_per_second": [number(line, "tokens_per_second") for line in curve],
            "evaluation": _evaluations(curve),
        },
    }


def _object_in(values: Line, key: str) -> dict[str, Any]:
    """An object in a record; empty where it is something else."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _sources(mix: Line, evaluation: Line) -> dict[str, dict[str, float | None]]:
    """Source of rows to its share of the supervised tokens, and to the loss of the published weights on what of it is held out."""
    shares = {source: {"share": number(part, "share")} for source, part in mix.items()}
    losses = {source: {"held_out_loss": number(evaluation, source)} for source in evaluation}
    return {source: shares.get(source, {}) | losses.get(source, {}) for source in sorted({*mix, *evaluation})}


def _evaluation(line: Line) -> dict[str, float | None]:
    """Source to held-out loss."""
    losses = _object_in(line, "evaluation")
    return {source: number(losses, source) for source in losses}


def _evaluations(curve: Sequence[Line]) -> dict[str, dict[str, list[float | None]]]:
    """Source to the steps that it was evaluated at and its losses there."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for line in curve:
        for source, loss in _evaluation(line).items():
            series = found.setdefault(source, {"step": [], "loss": []})
            series["step"].append(line["step"])
            series["loss"].append(loss)
    return found


def _sum(values: Iterable[float | None]) -> float | None:
    """None where there is nothing to add or a part is not known: a part of a sum is no sum."""
    known = list(values)
    parts = [value for value in known if value is not None]
    return round(sum(parts), 6) if parts and len(parts) == len(known) else None
