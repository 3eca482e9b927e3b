"""Gangs of training ranks, forked from one process that has imported everything: they start in a second, and can be killed at a chosen moment.

The ranks are real processes, and what kills them is a real SIGKILL that they send themselves: a rank that is to die calls `os.kill` in the
place of, or after, a call that it makes anyway.
"""

import importlib
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

from training.job import TrainingJob
from training.metrics import read_metrics

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false"}
WAIT_SECONDS = 240.0
IMPORTED = (
    "training.loop",
    "tests.training.gang",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.muon.original_muon",  # DeepSpeed imports it late, and with it torch's compiler: 4 s
    "transformers.models.llama.modeling_llama",
)


@dataclass(frozen=True, slots=True)
class Kill:
    """Which rank dies, and when.

    Attributes:
        rank: The victim.
        moment: A key of `MOMENTS`.
        count: The how manieth time that it comes to that moment, from 1.
    """

    rank: int
    moment: str
    count: int = 1


def start_gang(job: TrainingJob, world: int, kill: Kill | None = None) -> list[BaseProcess]:
    """Start the ranks of a job. What they say goes to `output.log` beside the checkpoints."""
    return _start(_run_rank, world, job.to_json(), kill)


def start_mains(module: str, world: int, log: Path, *arguments: str) -> list[BaseProcess]:
    """Have ranks run a module's `main(*arguments)`. What they say goes to a file."""
    return _start(_run_main, world, module, log, arguments)


def _start(target: Callable[..., None], world: int, *arguments: Any) -> list[BaseProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        _fork_server().Process(target=target, args=(rank, world, port, *arguments), daemon=True)
        for rank in range(world)
    ]
    with mock.patch.dict(os.environ, ENVIRONMENT):
        for rank in ranks:
            rank.start()
    return ranks


def wait_for(ranks: list[BaseProcess]) -> list[int | None]:
    """The exit codes of ranks, once all have ended. When one fails the others are killed, as every launcher does."""
    end = time.monotonic() + WAIT_SECONDS
    while any(rank.is_alive() for rank in ranks) and time.monotonic() < end:
        if any(rank.exitcode for rank in ranks):
            stop(ranks)
        time.sleep(0.02)
    return [rank.exitcode for rank in ranks]


def stop(ranks: list[BaseProcess]) -> None:
    for rank in ranks:
        rank.kill()
        rank.join()


def run_gang(job: TrainingJob, world: int, kill: Kill | None = None) -> list[int | None]:
    """Train a job until its ranks end or one of them is killed; their exit codes."""
    return wait_for(start_gang(job, world, kill))


def result(job: TrainingJob) -> tuple[list[tuple[int, float]], bytes]:
    """What a job has said and made: its losses by step, and the bytes of its weights."""
    lines = read_metrics(Path(job.metrics))
    return [(line["step"], line["loss"]) for line in lines], (Path(job.output) / "model.safetensors").read_bytes()


def starts(job: TrainingJob) -> list[int]:
    """The steps that a job was started at, one after the other."""
    return [line["step"] for line in read_metrics(Path(job.checkpoints) / "starts.jsonl")]


def said(job: TrainingJob) -> str:
    """What the ranks of a job have written to their terminals."""
    return (Path(job.checkpoints).parent / "output.log").read_text()


def _fork_server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


def _run_main(rank: int, world: int, port: int, module: str, log: Path, arguments: tuple[str, ...]) -> None:
    _take_place(rank, world, port, log)
    importlib.import_module(module).main(*arguments)


def _run_rank(rank: int, world: int, port: int, job_json: str, kill: Kill | None) -> None:
    job = TrainingJob.from_json(job_json)
    log = Path(job.checkpoints).parent / "output.log"
    _take_place(rank, world, port, log)
    if kill is not None and kill.rank == rank:
        MOMENTS[kill.moment](kill.count)
    from training.loop import main

    Path(log.parent / "job.json").write_text(job_json)
    sys.argv = ["training.loop", str(log.parent / "job.json")]
    main()


def _take_place(rank: int, world: int, port: int, log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update(
        {**ENVIRONMENT, **{name: str(value) for name, value in place.items()}, "MASTER_ADDR": "127.0.0.1"}
    )


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at(
    owner: Any, name: str, count: int, *, when: Callable[..., bool], instead: Callable[..., None] | None
) -> None:
    """Have this process die at a call of `owner.name`, before it or, without `instead`, after it."""
    real, calls = getattr(owner, name), 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += when(*arguments)
        last = when(*arguments) and calls == count
        if last and instead is not None:
            instead(*arguments)
            _die()
        result = real(*arguments, **named)
        if last:
            _die()
        return result

    setattr(owner, name, call)


def _always(*_: object) -> bool:
    return True


def _is_marker(path: Path, *_: object) -> bool:
    return path.name == ".COMPLETE.json"


def _is_checkpoint(path: Any, *_: object) -> bool:
    return Path(path).name.startswith("step-") and Path(path).exists()


def _is_model(path: Path, *_: object) -> bool:
    return path.name == ".output.unfinished"


def _write_half(state: Any, path: str) -> None:
    import io

    import torch

    whole = io.BytesIO()
    torch.serialization.save(state, whole)
    Path(path).write_bytes(whole.getvalue()[: whole.tell() // 2])


def _remove_one_file(path: Any, *_: object) -> None:
    next(file for file in Path(path).iterdir() if file.is_file()).unlink()


def _before_update(count: int) -> None:
    from deepspeed.runtime.engine import DeepSpeedEngine

    _die_at(DeepSpeedEngine, "step", count, when=_always, instead=_die)


def _while_deepspeed_writes(count: int) -> None:
    import torch

    _die_at(torch, "save", count, when=_always, instead=_write_half)


def _after_loading(count: int) -> None:
    from deepspeed.runtime.engine import DeepSpeedEngine

    _die_at(DeepSpeedEngine, "load_checkpoint", count, when=_always, instead=None)


MOMENTS: dict[str, Callable[[int], None]] = {
    "before-update": _before_update,
    "while-deepspeed-writes": _while_deepspeed_writes,
    "before-marker": lambda count: _die_at(Path, "replace", count, when=_is_marker, instead=_die),
    "after-marker": lambda count: _die_at(Path, "replace", count, when=_is_marker, instead=None),
    "during-rotation": lambda count: _die_at(shutil, "rmtree", count, when=_is_checkpoint, instead=_remove_one_file),
    "after-loading": _after_loading,
    "before-publishing": lambda count: _die_at(Path, "rename", count, when=_is_model, instead=_die),
    "after-publishing": lambda count: _die_at(Path, "rename", count, when=_is_model, instead=None),
}
