"""Where the line of each step goes: the JSONL file and TensorBoard always, Weights & Biases if asked for. Rank 0 writes, the others pass by."""

import os
import re
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from generation.errors import TrainingError
from training.job import TrainingJob
from training.metrics import MetricsFile, StepMetrics
from training.ranks import Ranks

Board = Callable[[StepMetrics], None]


@contextmanager
def recorded(job: TrainingJob, done: int, ranks: Ranks) -> Generator[Board]:
    """Open all of them; what is yielded takes one step's line, which is written when it returns.

    Args:
        job: What is trained.
        done: Steps of the checkpoint that the job goes on from: what was written of later ones is void.
        ranks: Of this job.

    Raises:
        TrainingError: Weights & Biases cannot be reached, or is not installed.
    """
    with ExitStack() as stack:
        boards: list[Board] = []
        if ranks.leads:
            boards = [MetricsFile(Path(job.metrics), done).write, stack.enter_context(_tensorboard(job, done))]
        if ranks.leads and job.config.wandb_project is not None:
            boards.append(stack.enter_context(_wandb(job, job.config.wandb_project)))

        def write(line: StepMetrics) -> None:
            for board in boards:
                board(line)

        yield write


def scalars(line: StepMetrics) -> dict[str, float]:
    """The numbers of a step by name; `evaluation/human` for the held-out loss of a source."""
    values = asdict(line)
    found = {f"evaluation/{source}": loss for source, loss in values.pop("evaluation").items()}
    return {**{name: value for name, value in values.items() if value is not None and name != "step"}, **found}


@contextmanager
def _tensorboard(job: TrainingJob, done: int) -> Generator[Board]:
    from torch.utils.tensorboard import SummaryWriter  # half a second, of rank 0 alone

    writer: Any = SummaryWriter(str(Path(job.metrics).with_name("tensorboard")), purge_step=done + 1)

    def write(line: StepMetrics) -> None:
        for name, value in scalars(line).items():
            writer.add_scalar(name, value, line.step)
        writer.flush()  # a step that a checkpoint holds is not written again

    try:
        yield write
    finally:
        writer.close()


@contextmanager
def _wandb(job: TrainingJob, project: str) -> Generator[Board]:
    """A run of the job's name, which a resumed job goes on with. Nothing leaves but the name and the numbers of each step."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # read at import
    try:
        import wandb
    except ImportError as error:
        raise TrainingError(
            "training.wandb_project is set, and wandb is not installed; install psi[wandb], or leave it out"
        ) from error
    library: Any = wandb
    try:
        run = library.init(
            project=project,
            name=job.name,
            id=re.sub(r"[^\w-]", "-", job.name),
            resume="allow",
            dir=str(Path(job.metrics).parent),
            settings=library.Settings(base_url=job.config.wandb_url, **_NOTHING_ELSE),
        )
    except library.Error as error:
        raise TrainingError(
            f"training.wandb_project = {project}: {job.config.wandb_url} does not take the run: {error}; set WANDB_API_KEY on the node of "
            "rank 0, or WANDB_MODE=offline, or leave it out"
        ) from error
    try:
        yield lambda line: run.log(scalars(line), step=line.step)
    finally:
        run.finish()


_NOTHING_ELSE: dict[str, Any] = {
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "console": "off",
    "silent": True,
    "host": "psi",
    "program": "psi",
}
"""What wandb would otherwise collect: code, git, command line, packages, host, hardware, the console."""
