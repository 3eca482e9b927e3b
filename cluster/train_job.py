"""Runs a training job under Ray Train, which only starts the ranks and starts them again: data, state and result are the loop's own."""

import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from cluster.energy import metered
from cluster.leaving import Leaving
from cluster.prepare_tokens import prepare_tokens
from generation.dataset import read_sealed
from generation.errors import NotSealedError, PreemptedError, PsiError, TrainingError
from training.config import TrainingConfig
from training.job import TrainingJob

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

_POLL_SECONDS = 5.0
_NOTICE_SECONDS = 1.0
_LEAVE = "leave"
"""A file beside the checkpoints, by which the driver has the ranks save and leave."""

_START_SECONDS = "1200"
"""Nodes that the cluster starts for a gang take minutes; Ray Train's own limit is one."""


def run_training(job: TrainingJob, leaving: Leaving | None = None) -> dict[str, Any]:
    """Train a job on the cluster that this process is connected to; goes on from its checkpoints, and returns at once when it is done.

    Args:
        job: What is trained.
        leaving: Whether this process was asked to leave, which has the ranks save and leave.

    Returns:
        `steps`, `seconds` (in steps), `tokens`, `supervised_tokens`, `final_loss`, `restarts`.

    Raises:
        NotSealedError: The dataset was not sealed within `config.dataset_deadline_seconds`.
        TrainingError: Training failed, and failed again after `config.max_restarts` restarts.
        PreemptedError: This process was asked to leave.
    """
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    if job.is_exported:
        return _totals(job)
    await_sealed(job.dataset, job.config.dataset_deadline_seconds)
    prepare_tokens(job)
    leaving, leave = leaving or Leaving(), Path(job.checkpoints) / _LEAVE
    leave.parent.mkdir(parents=True, exist_ok=True)
    leave.unlink(missing_ok=True)
    storage = Path(job.checkpoints).absolute() / "ray"
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _START_SECONDS)
    probe = storage / uuid4().hex
    storage.mkdir(exist_ok=True)
    probe.touch()
    try:
        with leaving.in_own_time(leave.touch):
            # A gang whose node is taken away saves, leaves, and starts again elsewhere.
            while not job.is_exported and not leaving.asked():
                make_trainer(job, storage, probe).fit()
        return _totals(job)
    except (TrainingFailedError, RayError) as error:
        raise TrainingError(f"{job.name}: {explain(error)}") from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _totals(job: TrainingJob) -> dict[str, Any]:
    """`summarise`, of a job that another node may have trained."""
    from training.checkpoint_copies import fetch_notes
    from training.metrics import summarise

    fetch_notes(job)
    return summarise(Path(job.metrics), Path(job.checkpoints))


def make_trainer(job: TrainingJob, storage: Path, probe: Path) -> "TorchTrainer":
    """Ray Train's view of a job: a function, ranks with their resources, and how often they may be started again.

    Args:
        job: What is trained.
        storage: Ray Train's own folder.
        probe: A file of the driver's that the ranks must see.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        train_on_rank,
        train_loop_config={"job": job.to_json(), "probe": str(probe)},
        torch_config=TorchConfig(timeout_s=math.ceil(job.config.collective_timeout_seconds)),
        scaling_config=ScalingConfig(**ranks_of(job.config)),
        run_config=RunConfig(
            # A name of its own: Ray Train would go on from its own records of an earlier job of the same name.
            name=f"{job.name}-{uuid4().hex[:8]}",
            storage_path=str(storage),
            failure_config=FailureConfig(
                max_failures=job.config.max_restarts, controller_failure_limit=job.config.max_restarts
            ),
            worker_runtime_env={"env_vars": rank_environment(job.config)},
        ),
    )


def train_on_rank(config: dict[str, str]) -> None:
    """What Ray Train runs on every rank. Returns with nothing exported where a node of the gang is about to be taken away."""
    job = TrainingJob.from_json(config["job"])
    _check_driver_sees(job, Path(config["probe"]))
    with metered(energy_folder(job), float(job.config.gpus_per_rank)):
        from training.loop import train

        with suppress(PreemptedError):
            train(job, watch_for_preemption(Path(job.checkpoints) / _LEAVE))


def _check_driver_sees(job: TrainingJob, probe: Path) -> None:
    """`training.ranks.check_shared` for the driver, which leaves word for the ranks beside the checkpoints and reads their metrics there."""
    if not probe.exists():
        raise TrainingError(
            f"{job.checkpoints}: not the same folder on the driver's node and on {socket.gethostname()}, where a rank runs;"
            " set run.scratch to a folder that the driver and all ranks share, or let the driver run on the ranks' node"
        )


def watch_for_preemption(leave: Path) -> Callable[[], bool]:
    """Has a thread look whether a node of this gang is about to be taken away, or the driver wants it to leave.

    A step must not ask itself, since Ray's answer waits for all ranks.

    Args:
        leave: A file that appears where the driver does.
    """
    from ray.train import get_preemption_info

    noticed = threading.Event()

    def watch() -> None:
        while get_preemption_info() is None and not leave.exists():
            time.sleep(_NOTICE_SECONDS)
        noticed.set()

    threading.Thread(target=watch, name="preemption", daemon=True).start()
    return noticed.is_set


def energy_folder(job: TrainingJob) -> Path:
    """Where the ranks of a job keep what they have used."""
    return Path(job.checkpoints) / "energy"


def await_sealed(dataset: str, deadline_seconds: float) -> None:
    """Wait until a dataset is sealed.

    Raises:
        NotSealedError: It was not in time.
    """
    deadline = time.monotonic() + deadline_seconds
    while True:
        try:
            read_sealed(dataset)
            return
        except NotSealedError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))


def ranks_of(config: TrainingConfig) -> dict[str, Any]:
    """The ranks as arguments of Ray Train's `ScalingConfig`."""
    resources = {"CPU": config.cpus_per_rank}
    if config.gpus_per_rank:
        resources["GPU"] = config.gpus_per_rank
    return {"num_workers": config.ranks, "use_gpu": config.gpus_per_rank > 0, "resources_per_worker": resources}


def rank_environment(config: TrainingConfig) -> dict[str, str]:
    """Environment of a rank; it must be set before torch and DeepSpeed are imported there."""
    fixed = {"OMP_NUM_THREADS": str(config.threads), "TOKENIZERS_PARALLELISM": "false"}
    environment = {**config.environment, **fixed}
    return environment if config.gpus_per_rank else {**environment, "DS_ACCELERATOR": "cpu"}


def explain(error: Exception) -> str:
    """The failure of the first rank that failed with an error of ours, else the first failure, in one line."""
    failures = [_cause(failure) for failure in getattr(error, "worker_failures", {}).values()]
    ours = [failure for failure in failures if isinstance(failure, PsiError)]
    first = (ours or failures or [error])[0]
    return (
        str(first)
        if ours
        else f"training ranks failed: {type(first).__name__}: {first}; checkpoints are kept, run the same again to go on"
    )


def _cause(failure: BaseException) -> BaseException:
    """The error inside Ray's wrappers of it."""
    inner = failure.__cause__ or getattr(failure, "_base_exc", None) or getattr(failure, "cause", None)
    return _cause(inner) if isinstance(inner, BaseException) else failure
