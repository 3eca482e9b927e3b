"""Which checkpoint a job goes on from, and loading it: only what its own record vouches for, and only where it makes the engine what it was.

What DeepSpeed writes are pickles, and unpickling runs code: the files of a checkpoint are the only ones that are ever unpickled, after
their sha256 were found as the run itself had noted them.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from generation.errors import TrainingError
from generation.storage import Store
from training.checkpoint import MARKER, Position, complete_checkpoints, hash_together, read_marker
from training.probe import Probe, take_probe
from training.ranks import Ranks
from training.universal import to_universal


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a job goes on.

    Attributes:
        step: Optimizer steps done; 0 where no checkpoint was loaded.
        passed_over: Newer checkpoints that were not whole, and what was wrong with each.
    """

    step: int
    passed_over: tuple[str, ...]


def resume(engine: Any, folder: Path, fresh: Position, ranks: Ranks, copies: str | None = None) -> Resumed:
    """Load the newest checkpoint that is whole. All ranks must call it.

    A checkpoint that is not is said on stderr, and set aside: it would otherwise count among those that are kept.

    Args:
        engine: Freshly started.
        folder: Where checkpoints are.
        fresh: The position of this job at its start.
        ranks: Of this job.
        copies: Folder in a bucket that they are copied back from; messages name it beside the folder.

    Raises:
        TrainingError: The checkpoint is of another plan or ZeRO stage, or the engine is not what it was when it was saved.
    """
    passed_over: list[str] = []
    candidates: Sequence[Path] = ranks.first(complete_checkpoints(folder))
    for target in reversed(candidates):
        damage = find_damage(target, ranks)
        if not damage:
            return Resumed(load_checkpoint(engine, target, fresh, ranks, copies), tuple(passed_over))
        passed_over.append(f"{target.name}: {damage}")
        if ranks.leads:
            sys.stderr.write(f"{target}: not used, an earlier checkpoint is: {damage}\n")
            (target / MARKER).rename(target / "DAMAGED.json")
    return Resumed(0, tuple(passed_over))


def find_damage(target: Path, ranks: Ranks) -> str:
    """What tells the files of a checkpoint from those that its marker lists, or nothing. All ranks must call it."""
    facts = read_marker(target)
    if not facts.keys() >= {field.name for field in fields(Position)} | {"probe", "files"}:
        return f"{MARKER} is not as it was written"
    wanted, found = facts["files"], hash_together(target, ranks)
    kinds = {
        "missing": sorted(wanted.keys() - found.keys()),
        "changed": sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name]),
        "not of this run": sorted(found.keys() - wanted.keys()),
    }
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)


def load_checkpoint(engine: Any, target: Path, fresh: Position, ranks: Ranks, copies: str | None = None) -> int:
    """Load a checkpoint that is known to be whole. All ranks must call it.

    Returns:
        Optimizer steps done.

    Raises:
        TrainingError: It is of another plan or ZeRO stage, or the engine is not what it was when it was saved.
    """
    facts = read_marker(target)
    position = Position(**{field.name: facts[field.name] for field in fields(Position)})
    _refuse_other(target, position, fresh, copies)
    # Without ZeRO every rank has all of the state, and the number of ranks is nothing to DeepSpeed.
    universal = fresh.zero_stage > 0 and position.world != fresh.world
    source = to_universal(target, ranks) if universal else target
    _load(engine, source, universal=universal)
    expected, found = Probe(**facts["probe"]), take_probe(engine, ranks)
    if not found.matches(expected):
        raise TrainingError(
            f"{target}: loaded, but the model is not what it was when it was saved: {found}, was {expected}; remove "
            f"{with_copy(target, copies and Store(copies).uri_of(target.name))} to go on from the checkpoint before it"
        )
    return position.step


def with_copy(path: Path, copy: str | None) -> str:
    """A checkpoint or the folder of all of them, to be removed: with its copy in a bucket, from which the next start would bring it back."""
    return f"{path} and its copy {copy}" if copy else str(path)


def _load(engine: Any, source: Path, *, universal: bool) -> None:
    """Have DeepSpeed load, and put right what it leaves wrong.

    Of a universal checkpoint with ZeRO 3, DeepSpeed 0.19.8 gives all parameter groups the settings of the first, weight decay
    among them, and all of their states one tensor to count steps in, which then counts several a step.
    """
    groups = engine.basic_optimizer.param_groups
    settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    engine._config.load_universal_checkpoint = universal  # in DeepSpeed's JSON it would hold for every load
    frozen = any(not weight.requires_grad for weight in engine.module.parameters())  # of those, a checkpoint has none
    engine.load_checkpoint(str(source.parent), tag=source.name, load_module_strict=not frozen)
    for group, values in zip(engine.basic_optimizer.param_groups, settings, strict=True):
        group.update(values)
    for state in engine.basic_optimizer.state.values():
        if hasattr(state.get("step"), "clone"):
            state["step"] = state["step"].clone()


def _refuse_other(target: Path, found: Position, wanted: Position, copies: str | None) -> None:
    fresh_start = f"remove {with_copy(target.parent, copies)} to train from the start"
    if found.plan != wanted.plan:
        raise TrainingError(
            f"{target}: made for other data or another [training] section (plan {found.plan}, now {wanted.plan}); {fresh_start}"
        )
    if found.zero_stage != wanted.zero_stage:
        raise TrainingError(
            f"{target}: saved with ZeRO stage {found.zero_stage}, this job has stage {wanted.zero_stage}, and DeepSpeed cannot load the one "
            f"as the other; set training.zero_stage = {found.zero_stage}, or {fresh_start}"
        )
