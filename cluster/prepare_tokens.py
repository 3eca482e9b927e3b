"""Tokenises dataset files in Ray tasks of one core: each file as soon as it is written, and what is left over before the ranks start.

Token files lie in `tokens/` below `run.scratch`, on the node where the task runs. Scratch is a folder that all nodes share, or the ranks
are on the driver's node (`training.ranks.check_shared`): a file that the driver does not see once its task is done lies in another node's
own scratch, and is made again on the driver's node.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.energy import metered
from generation.errors import PsiError, TrainingError
from training.config import TrainingConfig
from training.job import TrainingJob
from training.sources import Source, find_sources

if TYPE_CHECKING:
    from ray import ObjectRef

_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
"""A task has one core."""
_ANYWHERE = "SPREAD"


class TokenTasks:
    """Files that are tokenised while the driver goes on."""

    def __init__(self) -> None:
        self._running: list[ObjectRef[None]] = []

    def begin(self, source: Source, folder: str, model: str, config: TrainingConfig) -> None:
        """Have a file tokenised as soon as a core is free."""
        self._running.append(_submit(source, folder, model, config))

    def wait(self) -> None:
        """Until nothing runs any more. What failed is tried again by `prepare_tokens`, which says why if it fails again."""
        import ray

        if self._running:
            ray.wait(self._running, num_returns=len(self._running))
        self._running = []


def prepare_tokens(job: TrainingJob) -> None:
    """Make those token files of a job that are not there, one task a file, while no process group is alive that could time out.

    Raises:
        NotSealedError: The dataset is not sealed.
        TrainingError: A row is too long and must not be, the chat template does not fit, or a task died each time it was tried.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from training.chat import load_encoder
    from training.prepare import is_prepared

    encoder, folder, sources = load_encoder(job.model), Path(job.tokens), find_sources(job)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    try:
        for strategy in (_ANYWHERE, here):
            missing = [source for source in sources if not is_prepared(source, folder, encoder, job.config)]
            ray.get([_submit(source, job.tokens, job.model, job.config, strategy) for source in missing])
    except RayTaskError as error:
        if isinstance(error.cause, PsiError):
            raise error.cause from error
        raise TrainingError(f"{job.name}: tokenising failed: {error.cause!r}") from error
    except RayError as error:
        raise TrainingError(f"{job.name}: tokenising failed: {error}; run the same again to go on") from error


def token_energy(folder: str) -> Path:
    """Where the tasks that write to a folder keep what they have used."""
    return Path(folder) / "energy"


def _submit(
    source: Source, folder: str, model: str, config: TrainingConfig, strategy: Any = _ANYWHERE
) -> "ObjectRef[None]":
    import ray

    task: Any = ray.remote(_tokenise)
    options = {"num_cpus": 1, "runtime_env": {"env_vars": _ENVIRONMENT}, "scheduling_strategy": strategy}
    return task.options(**options).remote(source, folder, model, config)


def _tokenise(source: Source, folder: str, model: str, config: TrainingConfig) -> None:
    """What a task does."""
    from training.prepare import prepare_file

    with metered(token_energy(folder), 0.0):
        prepare_file(source, Path(folder), _encoder(model), config)


@cache
def _encoder(model: str) -> Any:
    """The encoder, loaded once by a process for all its files."""
    from training.chat import load_encoder

    return load_encoder(model)
