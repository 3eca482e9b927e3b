"""Who this process is among the training ranks, under whatever launcher started it (torchrun, Ray Train, or nothing)."""

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import torch
from torch import distributed
from torch.distributed import distributed_c10d

from generation.errors import StorageError, TrainingError
from training.config import TrainingConfig

_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place.

    Attributes:
        rank: From 0; rank 0 writes what is written once.
        world: Number of ranks.
        device: Where this rank computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank. All ranks must call it."""
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

    def first(self, value: Any) -> Any:
        """Rank 0's value, on every rank. All ranks must call it."""
        return self.gather(value)[0]

    def wait(self) -> None:
        """Until all ranks are here."""
        self.gather(None)

    def side_by_side(self, work: Callable[[], None]) -> str:
        """Have each rank do its part in a thread, so that no collective waits for as long as it takes. All ranks must call it.

        Returns:
            The first failure to read or write, or nothing.
        """
        with ThreadPoolExecutor(1) as pool:
            part = pool.submit(work)
            while any(self.gather(not part.done())):
                time.sleep(_POLL_SECONDS)
        error = part.exception()
        failures = self.gather(str(error or ""))
        if error is not None and not isinstance(error, StorageError | OSError):
            raise error
        return next(filter(None, failures), "")


def place_of_rank() -> tuple[int, int]:
    """(rank, world) as the launcher says; (0, 1) without one."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def join_ranks(config: TrainingConfig) -> Ranks:
    """Join the process group that RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR describe, unless this process is already in one."""
    os.environ.update(config.environment)
    rank, world = place_of_rank()
    local = os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it too
    torch.set_num_threads(config.threads)
    if torch.cuda.is_available():
        device, backend = torch.device("cuda", int(local)), "nccl"
        torch.cuda.set_device(device)
    else:
        device, backend = torch.device("cpu"), "gloo"
        os.environ["DS_ACCELERATOR"] = "cpu"
    timeout = timedelta(seconds=config.collective_timeout_seconds)
    # DeepSpeed makes groups of its own and cannot be told how long they wait: 30 minutes with gloo, 10 with NCCL.
    cast(Any, distributed_c10d).default_pg_timeout = cast(Any, distributed_c10d).default_pg_nccl_timeout = timeout
    if not distributed.is_initialized():
        alone: dict[str, Any] = {"store": cast(Any, distributed).HashStore()} if world == 1 else {}
        distributed.init_process_group(backend, rank=rank, world_size=world, timeout=timeout, **alone)
    return Ranks(rank, world, device)


def check_shared(ranks: Ranks, folder: Path) -> None:
    """Make sure that all ranks see the same folder.

    Raises:
        TrainingError: Some do not; the message names their hosts.
    """
    probe = folder / f".shared-{uuid4().hex}"
    if ranks.leads:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
    name = cast(str, ranks.first(probe.name))
    seen = ranks.gather((socket.gethostname(), (folder / name).exists()))
    if ranks.leads:
        probe.unlink()
    blind = sorted({host for host, sees in seen if not sees})
    if blind:
        raise TrainingError(
            f"{folder}: not the same folder on {', '.join(blind)}; set run.scratch to a folder that all nodes share"
        )
