"""What a job says about itself while it runs: one JSON line an optimizer step, and one a start."""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training.ranks import Ranks
from training.resume import Resumed


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One line of the metrics file.

    Attributes:
        step: Optimizer steps done, from 1.
        epoch: From 0.
        loss: Mean cross entropy over the supervised tokens of the step, all ranks, nats.
        learning_rate: Of this step.
        gradient_norm: Before clipping, or None where DeepSpeed does not compute it.
        tokens: Tokens of the step, padding not counted, all ranks.
        supervised_tokens: Those of them that the loss is on.
        supervised: Their share.
        padding: Share of the computed positions that was padding.
        rank_spread: Tokens of the fullest rank minus those of the emptiest, over the mean.
        data_wait: Share of the time in which the rank that waited longest had no batch to compute.
        seconds: Wall time of the step; evaluations and checkpoints are not in it.
        tokens_per_second: `tokens` in `seconds`.
        mfu: Model FLOPs over what the devices could have done in bf16 (`training.flops`); None where their peak is not known, as on CPU.
        evaluation: Source of held-out rows to their loss after the step, nats a token; empty where there was no evaluation.
    """

    step: int
    epoch: int
    loss: float
    learning_rate: float
    gradient_norm: float | None
    tokens: int
    supervised_tokens: int
    supervised: float
    padding: float
    rank_spread: float
    data_wait: float
    seconds: float
    tokens_per_second: float
    mfu: float | None
    evaluation: dict[str, float] = field(default_factory=dict[str, float])


class MetricsFile:
    """Appends steps to a file."""

    def __init__(self, path: Path, done: int) -> None:
        """Open the file, and cut away steps that a job wrote after its last checkpoint.

        Args:
            path: Where it is, or shall be.
            done: Steps of the checkpoint that this job goes on from.
        """
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(path) if line["step"] <= done]
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(path)

    def write(self, metrics: StepMetrics) -> None:
        """Append one step; it is in the file when this returns."""
        with self._path.open("a") as stream:
            stream.write(json.dumps(asdict(metrics)) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file; none where it does not exist."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def record_start(folder: Path, resumed: Resumed, ranks: Ranks) -> None:
    """Note that training starts, or starts again, at which step, by which processes (`host:pid`, in rank order), and what was passed over."""
    processes = ranks.gather(f"{socket.gethostname()}:{os.getpid()}")
    if ranks.leads:
        with _starts(folder).open("a") as stream:
            line = {"time": time.time(), **asdict(resumed), "processes": processes}
            stream.write(json.dumps(line) + "\n")


def summarise(metrics: Path, checkpoints: Path) -> dict[str, Any]:
    """Totals of a finished job.

    Returns:
        `steps`, `seconds` (in steps), `tokens`, `supervised_tokens`, `final_loss`, `evaluation` (the last one), `restarts`, and, over all steps,
        `tokens_per_second`, `mfu`, `supervised`, `padding` and `data_wait`, as in a step's line.
    """
    lines = read_metrics(metrics)
    seconds, tokens, supervised = (
        sum(line[key] for line in lines) for key in ("seconds", "tokens", "supervised_tokens")
    )
    positions = sum(line["tokens"] / (1 - line["padding"]) for line in lines)
    evaluations = [line["evaluation"] for line in lines if line["evaluation"]]
    return {
        "steps": len(lines),
        "seconds": round(seconds, 3),
        "tokens": tokens,
        "supervised_tokens": supervised,
        "final_loss": lines[-1]["loss"] if lines else None,
        "evaluation": evaluations[-1] if evaluations else {},
        "restarts": max(0, len(read_metrics(_starts(checkpoints))) - 1),
        "tokens_per_second": tokens / seconds if lines else None,
        "mfu": _share_of_time(lines, "mfu"),
        "supervised": supervised / tokens if lines else None,
        "padding": 1 - tokens / positions if lines else None,
        "data_wait": _share_of_time(lines, "data_wait"),
    }


def _share_of_time(lines: list[dict[str, Any]], key: str) -> float | None:
    """A share that steps have, over the time of all; None where some have none."""
    if not lines or any(line[key] is None for line in lines):
        return None
    return sum(line[key] * line["seconds"] for line in lines) / sum(line["seconds"] for line in lines)


def _starts(folder: Path) -> Path:
    return folder / "starts.jsonl"
