"""Checkpoints: DeepSpeed's state and our own facts, complete or invisible.

`<folder>/step-00000100/` holds what DeepSpeed wrote; `COMPLETE.json`, written last, has the sha256 of every file in it. A folder without
it, or one whose files do not match it, does not exist for a resuming job.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, fields
from operator import itemgetter
from pathlib import Path
from typing import Any

from generation.errors import TrainingError
from training.ranks import Ranks

MARKER = "COMPLETE.json"
KEPT = 2
"""Complete checkpoints that stay beside the best: the newest, and the one before for when its disk lies."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a job stands.

    Attributes:
        plan: Digest of the pack plan.
        epoch: Of the step that comes next.
        step: Optimizer steps done.
        world: Ranks that share the state.
        zero_stage: How they share it.
    """

    plan: str
    epoch: int
    step: int
    world: int
    zero_stage: int


def save_checkpoint(engine: Any, folder: Path, position: Position, ranks: Ranks, evaluation_loss: float | None) -> None:
    """Write a checkpoint, make it durable, and only then remove old ones. All ranks must call it.

    Args:
        engine: Whose state is saved.
        folder: Where checkpoints are.
        position: Where the job stands.
        ranks: Of this job.
        evaluation_loss: On held-out rows at this step, nats a token, or None where there was no evaluation; rank 0's counts.
    """
    target = _path(folder, position.step)
    if ranks.leads:
        shutil.rmtree(target, ignore_errors=True)  # what a job that died while saving left
    ranks.wait()
    engine.save_checkpoint(str(folder), tag=target.name, save_latest=False)
    ranks.wait()
    hashes = _hash_together(target, ranks)
    if ranks.leads:
        facts = {**asdict(position), "evaluation_loss": evaluation_loss, "files": hashes}
        _write_durably(target / MARKER, json.dumps(facts, indent=1))
        _rotate(folder)
    ranks.wait()


def resume(engine: Any, folder: Path, fresh: Position, ranks: Ranks) -> int:
    """Load the newest checkpoint that is whole. All ranks must call it.

    Args:
        engine: Freshly started.
        folder: Where checkpoints are.
        fresh: The position of this job at its start.
        ranks: Of this job.

    Returns:
        Optimizer steps done; 0 where there is no checkpoint.

    Raises:
        TrainingError: The checkpoint is of another plan, number of ranks or ZeRO stage.
    """
    for target in reversed(complete_checkpoints(folder)):
        facts = _facts(target)
        if _hash_together(target, ranks) != facts["files"]:
            continue
        position = Position(**{field.name: facts[field.name] for field in fields(Position)})
        _refuse_other(target, position, fresh)
        engine.load_checkpoint(str(folder), tag=target.name)
        return position.step
    return 0


def complete_checkpoints(folder: Path) -> list[Path]:
    """The folders that have their marker, oldest first."""
    return sorted(marker.parent for marker in folder.glob(f"step-*/{MARKER}"))


def best_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the lowest evaluation loss, the earlier one of equals; None where nothing was evaluated."""
    losses = [(_facts(path)["evaluation_loss"], path) for path in complete_checkpoints(folder)]
    evaluated = [(loss, path) for loss, path in losses if loss is not None]
    return min(evaluated, key=itemgetter(0))[1] if evaluated else None


def sha256_of(path: Path) -> str:
    """Hex digest of a file, which is flushed to disk on the way."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _facts(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / MARKER).read_text())


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _hash_together(target: Path, ranks: Ranks) -> dict[str, str]:
    """Each rank hashes its share of the files; all learn all hashes."""
    files = sorted(path for path in target.rglob("*") if path.is_file() and path.name != MARKER)
    mine = {str(path.relative_to(target)): sha256_of(path) for path in files[ranks.rank :: ranks.world]}
    return {name: value for part in ranks.gather(mine) for name, value in part.items()}


def _refuse_other(target: Path, found: Position, wanted: Position) -> None:
    if found.plan != wanted.plan:
        raise TrainingError(
            f"{target}: made for other data or another [training] section (plan {found.plan}, now {wanted.plan}); remove "
            f"{target.parent} to train from the start"
        )
    if (found.world, found.zero_stage) != (wanted.world, wanted.zero_stage):
        raise TrainingError(
            f"{target}: saved by {found.world} ranks with ZeRO stage {found.zero_stage}, this job has {wanted.world} with stage "
            f"{wanted.zero_stage}; set training.ranks and training.zero_stage back, or remove {target.parent} to train from the start"
        )


def _rotate(folder: Path) -> None:
    kept = {*complete_checkpoints(folder)[-KEPT:], best_checkpoint(folder)}
    for path in folder.glob("step-*"):
        if path not in kept:
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path)


def _write_durably(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    for folder in (path.parent, path.parent.parent):
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
