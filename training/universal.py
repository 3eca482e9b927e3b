"""Checkpoints for another number of ranks: DeepSpeed's own conversion, complete or invisible like the checkpoints themselves."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from generation.errors import TrainingError
from training.checkpoint import MARKER, UNIVERSAL, hash_together, read_marker, sha256_of, write_marker
from training.ranks import Ranks

_POLL_SECONDS = 0.2


def to_universal(checkpoint: Path, ranks: Ranks) -> Path:
    """Convert a checkpoint that is known to be whole, unless that was done already. All ranks must call it.

    Rank 0 converts in a process of its own, which needs no GPU and gives its memory back; the others hear from it meanwhile, so that
    no collective waits for as long as the conversion takes.

    Returns:
        The folder to load instead.

    Raises:
        TrainingError: The conversion failed.
    """
    target, source = checkpoint.parent / UNIVERSAL / checkpoint.name, sha256_of(checkpoint / MARKER)
    if ranks.first((target / MARKER).exists()):
        facts = read_marker(target)
        if (facts.get("source"), facts.get("files")) == (source, hash_together(target, ranks)):
            return target
    failure = _convert(checkpoint, target, ranks)
    if failure:
        raise TrainingError(f"{checkpoint}: cannot be converted for {ranks.world} ranks: {failure}")
    hashes = hash_together(target, ranks)
    if ranks.leads:
        write_marker(target, {"source": source, "files": hashes})
    ranks.wait()
    return target


def _convert(checkpoint: Path, target: Path, ranks: Ranks) -> str:
    """Returns what went wrong, or nothing, on every rank."""
    failure = ""
    if not ranks.leads:
        while ranks.first(True):
            pass
        return ranks.first(failure)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    log = target.with_suffix(".log")
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, f"--input_folder={checkpoint}", f"--output_folder={target}"],
            stdout=stream,
            stderr=stream,
            env=environment,
        )
    while ranks.first(process.poll() is None):
        time.sleep(_POLL_SECONDS)
    if process.returncode:
        failure = log.read_text(errors="replace")[-2000:].strip() or f"exit code {process.returncode}"
    return ranks.first(failure)
