"""The training loop. Knows no launcher: it starts under torchrun, under Ray Train, or alone.

`python -m training.loop JOB.json`, on every rank.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import distributed

from generation.errors import PreemptedError, PsiError
from training.checkpoint import save_checkpoint
from training.checkpoint_copies import fetch_copy, send_copy
from training.export import publish
from training.feed import Feed
from training.held_out import deciding_loss, held_out_losses, is_due, load_published
from training.job import TrainingJob
from training.metrics import record_start
from training.record import recorded
from training.resume import resume
from training.start import lineage, start_training
from training.step import run_step


def train(job: TrainingJob, asked_to_leave: Callable[[], bool] = lambda: False) -> None:
    """Train a job to its end on this rank, going on from its newest checkpoint. Returns at once where the model is already exported.

    Args:
        job: What is trained.
        asked_to_leave: Whether this rank has heard that its machine is about to be taken away; asked once a step, so it must not wait.

    Raises:
        PreemptedError: A rank was asked to leave. A checkpoint of this step is saved.
        TrainingError: Something about the job cannot work; the message says what.
        NotSealedError: The dataset is not sealed.
    """
    if job.is_exported:
        return
    checkpoints, training = Path(job.checkpoints), start_training(job)
    engine, plan, ranks = training.engine, training.plan, training.ranks
    fetch_copy(job, ranks)
    resumed = resume(engine, checkpoints, training.position(0), ranks, job.checkpoint_copies)
    record_start(checkpoints, resumed, ranks)
    with recorded(job, resumed.step, ranks) as record, Feed(training) as feed:
        for step in range(resumed.step, plan.steps):
            line, leaves = run_step(training, feed, step, asked_to_leave=asked_to_leave())
            saves = line.step == plan.steps or line.step % job.config.checkpoint_every_steps == 0
            if is_due(training, line.step, saves=saves):
                line = replace(line, evaluation=held_out_losses(training))
            record(line)
            if saves or leaves:
                loss = deciding_loss(line.evaluation)
                save_checkpoint(engine, checkpoints, training.position(line.step), ranks, evaluation_loss=loss)
                send_copy(job, ranks)
            if leaves and line.step < plan.steps:
                raise PreemptedError(
                    f"{job.name}: asked to leave; saved after step {line.step} of {plan.steps}, run the same again to go on"
                )
    published = load_published(training)
    publish(engine, job, training.encoder, ranks, lineage(training, published) if ranks.leads else {})


def main() -> None:
    """Train the job whose JSON file is the only argument. SIGTERM asks to leave."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        train(TrainingJob.from_json(Path(sys.argv[1]).read_text()), asked.is_set)
    except PsiError as error:
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        os._exit(error.exit_code)  # without the barrier of a clean exit, at which the other ranks would not arrive
    if distributed.is_initialized():
        distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # The interpreter's own exit has aborted ranks whose work was done ("terminate called without an active exception"): threads of
    # libraries still ran.
    os._exit(0)


if __name__ == "__main__":
    main()
