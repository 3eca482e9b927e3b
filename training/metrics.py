"""What a job says about itself while it runs: one JSON line an optimizer step, and one a start."""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.ranks import Ranks


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
        padding: Share of the computed positions that was padding.
        seconds: Wall time of the step.
    """

    step: int
    epoch: int
    loss: float
    learning_rate: float
    gradient_norm: float | None
    tokens: int
    supervised_tokens: int
    padding: float
    seconds: float


class MetricsFile:
    """Appends steps to a file; rank 0 writes, the others pass by."""

    def __init__(self, path: Path, done: int, ranks: Ranks) -> None:
        """Open the file, and cut away steps that a job wrote after its last checkpoint.

        Args:
            path: Where it is, or shall be.
            done: Steps of the checkpoint that this job goes on from.
            ranks: Of this job.
        """
        self._path, self._writes = path, ranks.leads
        if self._writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = [line for line in read_metrics(path) if line["step"] <= done]
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
            temporary.replace(path)

    def write(self, metrics: StepMetrics) -> None:
        """Append one step; it is in the file when this returns."""
        if self._writes:
            with self._path.open("a") as stream:
                stream.write(json.dumps(asdict(metrics)) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file; none where it does not exist."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def record_start(folder: Path, step: int, ranks: Ranks) -> None:
    """Note that training starts, or starts again, at a step, and by which processes (`host:pid`, in rank order)."""
    processes = ranks.gather(f"{socket.gethostname()}:{os.getpid()}")
    if ranks.leads:
        with _starts(folder).open("a") as stream:
            stream.write(json.dumps({"time": time.time(), "step": step, "processes": processes}) + "\n")


def summarise(metrics: Path, checkpoints: Path) -> dict[str, Any]:
    """Totals of a finished job: steps, seconds in steps, tokens, supervised_tokens, final_loss, restarts."""
    lines = read_metrics(metrics)
    return {
        "steps": len(lines),
        "seconds": round(sum(line["seconds"] for line in lines), 3),
        "tokens": sum(line["tokens"] for line in lines),
        "supervised_tokens": sum(line["supervised_tokens"] for line in lines),
        "final_loss": lines[-1]["loss"] if lines else None,
        "restarts": max(0, len(read_metrics(_starts(checkpoints))) - 1),
    }


def _starts(folder: Path) -> Path:
    return folder / "starts.jsonl"
