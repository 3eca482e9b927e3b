"""Checkpoints: DeepSpeed's state and our own facts, complete or invisible.

`<folder>/step-00000100/` holds what DeepSpeed wrote; `COMPLETE.json`, written last, has the sha256 of every file in it. A folder without
it does not exist for a resuming job (`training.resume`).
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from training.probe import take_probe
from training.ranks import Ranks

MARKER = "COMPLETE.json"
UNIVERSAL = "universal"
"""Folder of checkpoints that were converted for another number of ranks."""
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
    target = folder / f"step-{position.step:08d}"
    if ranks.leads:
        shutil.rmtree(target, ignore_errors=True)  # what a job that died while saving left
    ranks.wait()
    engine.save_checkpoint(str(folder), tag=target.name, save_latest=False, exclude_frozen_parameters=True)
    probe = take_probe(engine, ranks)
    ranks.wait()
    hashes = hash_together(target, ranks)
    if ranks.leads:
        facts = {**asdict(position), "evaluation_loss": evaluation_loss, "probe": asdict(probe), "files": hashes}
        write_marker(target, facts)
        _rotate(folder)
    ranks.wait()


def complete_checkpoints(folder: Path) -> list[Path]:
    """The folders that have their marker, oldest first."""
    return sorted(marker.parent for marker in folder.glob(f"step-*/{MARKER}"))


def best_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the lowest evaluation loss, the earlier one of equals; None where nothing was evaluated."""
    losses = [(read_marker(path).get("evaluation_loss"), path) for path in complete_checkpoints(folder)]
    evaluated = [(loss, path) for loss, path in losses if loss is not None]
    return min(evaluated, key=itemgetter(0))[1] if evaluated else None


def read_marker(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint's marker says: the fields of `Position`, `evaluation_loss`, `probe` and `files`; empty where it is no JSON object."""
    try:
        facts = json.loads((checkpoint / MARKER).read_bytes())
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def write_marker(checkpoint: Path, facts: dict[str, Any]) -> None:
    """Make a folder visible, durably."""
    temporary = checkpoint / f".{MARKER}"
    with temporary.open("w") as stream:
        stream.write(json.dumps(facts, indent=1))
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(checkpoint / MARKER)
    flush_folder(checkpoint)
    flush_folder(checkpoint.parent)


def flush_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def hash_together(folder: Path, ranks: Ranks) -> dict[str, str]:
    """Sha256 of every file in a folder but its marker, by relative path; each rank hashes its share. All ranks must call it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    mine = {str(path.relative_to(folder)): sha256_of(path) for path in files[ranks.rank :: ranks.world]}
    return {name: value for part in ranks.gather(mine) for name, value in part.items()}


def sha256_of(path: Path) -> str:
    """Hex digest of a file, which is flushed to disk on the way."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _rotate(folder: Path) -> None:
    kept = {*complete_checkpoints(folder)[-KEPT:], best_checkpoint(folder)}
    for path in folder.glob("step-*"):
        if path not in kept:
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path)
    shutil.rmtree(folder / UNIVERSAL, ignore_errors=True)
