"""Pools of replicas: start all at once, ask them, have them generate, replace those that die."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from cluster.asking import Asking, Chunk
from cluster.coordinator_calls import RemoteCoordinator, cause_of
from cluster.energy_book import EnergyBook
from cluster.pool_member import Member, is_death, start_member
from cluster.protocol import GenerateJob
from generation.engines.config import PoolConfig
from generation.errors import EngineError, GaveUpError
from generation.flows import FlowCall, FlowResult

_CHUNKS_AT_ONCE = 2
"""Chunks of an ask in one replica, so that it has a next one while the first ends."""

_COORDINATOR = "coordinator"
_LEAVE_SECONDS = 30.0
_STOP_SECONDS = 20.0

_log = logging.getLogger(__name__)


class Pool:
    """Replicas of one engine. One thread uses it.

    Args:
        name: Of the pool; part of its replicas' names.
        config: Its section of the recipe.
        max_restarts: Replicas that may die before the pool gives up.
        energy: Where what its replicas use is booked.
    """

    def __init__(self, name: str, config: PoolConfig, max_restarts: int = 5, energy: EnergyBook | None = None) -> None:
        self._name = name
        self._energy = energy
        self._config = config
        self._max_restarts = max_restarts
        self._deaths = 0
        self._members: list[Member] = []
        self._generation: tuple[GenerateJob, RemoteCoordinator] | None = None

    def __enter__(self) -> "Pool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, wait_for: int = 1) -> None:
        """Start all replicas at once, and wait until the first `wait_for` are ready; the others join when they are.

        Raises:
            EngineError: The engine cannot be built, or not in `start_timeout_seconds`.
            GaveUpError: Too many replicas died.
        """
        self._members = [start_member(self._name, number, self._config) for number in range(self._config.replicas)]
        deadline = time.monotonic() + self._config.start_timeout_seconds
        while len(self._ready()) < wait_for:
            if time.monotonic() > deadline:
                raise self._too_slow()
            self._look(timeout=1.0)

    def ask(
        self,
        calls: list[FlowCall],
        token_budget: int | None = None,
        on_results: Callable[[int], None] = lambda done: None,
    ) -> list[FlowResult]:
        """Run flows on all replicas; results come in the order of the calls. A dead replica's flows are run again elsewhere.

        Args:
            calls: The flows.
            token_budget: Prompt plus output tokens that they may use together, or None.
            on_results: Told how many results there are, whenever there are more.

        Raises:
            EngineError: The engine cannot be built, or no replica is left and none became ready in `start_timeout_seconds`.
            GaveUpError: Too many replicas died.
        """
        asking = Asking(calls, token_budget, self._config.replicas)
        for member in self._ready():
            member.watch()
        open_chunks: dict[Any, tuple[Member, Chunk]] = {}
        while not asking.done:
            for member in self._ready():
                while member.chunks < _CHUNKS_AT_ONCE and (chunk := asking.next_chunk()) is not None:
                    member.chunks += 1
                    open_chunks[member.handle.ask.remote(chunk.calls, chunk.budget)] = (member, chunk)
            for reference in self._look(list(open_chunks), timeout=1.0):
                member, chunk = open_chunks.pop(reference)
                member.chunks -= 1
                self._take(asking, reference, member, chunk)
                on_results(asking.num_results)
            self._replace_the_troubled()
        return asking.results()

    def start_generation(self, job: GenerateJob, coordinator: Any) -> None:
        """Have every replica, also those that are not ready yet, lease units from the coordinator actor until it is told to leave."""
        self._generation = (job, RemoteCoordinator(coordinator))
        if self._energy is not None:
            self._energy.watch(_COORDINATOR, coordinator, role="coordinator")
        for member in self._ready():
            self._generate(member)

    def tend(self, coordinator: Any) -> None:
        """Replace what died or hangs, and have what became ready generate. Never waits.

        Raises:
            EngineError: No replica is left, and none became ready in `start_timeout_seconds`.
            GaveUpError: Too many replicas died.
        """
        if self._generation is not None:
            self._generation = (self._generation[0], RemoteCoordinator(coordinator))
        self._look(timeout=0)
        self._replace_the_troubled()

    def stop_generation(self) -> None:
        """Have the replicas stop at once; what is not committed is dropped. One that does not listen is replaced."""
        import ray

        self._generation = None
        if self._energy is not None:
            self._energy.release(_COORDINATOR)
        busy = [member for member in self._members if member.generating is not None]
        for member in busy:
            member.handle.leave.remote()
        if busy:
            ray.wait([member.generating for member in busy], num_returns=len(busy), timeout=_LEAVE_SECONDS)
        self._look(timeout=0)
        for member in busy:
            if member.generating is not None and member in self._members:
                self._replace(member, f"did not stop in {_LEAVE_SECONDS:.0f} s")

    def close(self) -> None:
        """Stop all replicas."""
        import ray

        if self._energy is not None:
            self._energy.release(*(member.replica_id for member in self._members))
        stopping = [member.handle.stop.remote() for member in self._ready()]
        if stopping:
            ray.wait(stopping, num_returns=len(stopping), timeout=_STOP_SECONDS)
        for member in self._members:
            ray.kill(member.handle)
        self._members = []

    def _ready(self) -> list[Member]:
        return [member for member in self._members if member.info is not None]

    def _generate(self, member: Member) -> None:
        if self._generation is not None and member.generating is None:
            member.watch()
            member.generating = member.handle.generate.remote(*self._generation)

    def _look(self, others: list[Any] | None = None, timeout: float = 0) -> list[Any]:
        """Wait for anything that the replicas were told to do, see to it, and return which of `others` are done."""
        import ray

        watched = {member.starting: member for member in self._members if member.info is None}
        watched |= {member.generating: member for member in self._members if member.generating is not None}
        references = [*watched, *(others or [])]
        if not references:
            return []
        done, _ = ray.wait(references, timeout=timeout)
        if timeout or len(references) > 1:  # collect whatever else is done by now
            done, _ = ray.wait(references, num_returns=len(references), timeout=0)
        for reference in done:
            if reference in watched:
                self._see_to(watched[reference], reference)
        return [reference for reference in done if reference not in watched]

    def _see_to(self, member: Member, reference: Any) -> None:
        import ray

        if member not in self._members:
            return
        starting = reference is member.starting
        if not starting:
            member.generating = None
        try:
            value: Any = ray.get(reference)
        except Exception as error:  # noqa: BLE001 - any failure of a replica's long calls is a reason to replace it
            cause = cause_of(error)
            if starting and not is_death(cause) and not self._deaths and not self._ready():
                raise cause from None
            self._replace(member, str(cause))
            return
        if starting:
            member.info = value
            member.watch()
            if self._energy is not None:
                self._energy.watch(member.replica_id, member.handle, pool=self._name, loaded=value.loaded)
            self._generate(member)

    def _take(self, asking: Asking, reference: Any, member: Member, chunk: Chunk) -> None:
        import ray

        try:
            asking.finish(chunk, ray.get(reference))
        except Exception as error:  # noqa: BLE001 - raised again below, as the replica raised it
            cause = cause_of(error)
            if not is_death(cause):
                raise cause from None
            asking.lose(chunk)
            if member in self._members:
                self._replace(member, str(cause))

    def _replace_the_troubled(self) -> None:
        if self._energy is not None:
            self._energy.look()
        for member in self._ready():
            if reason := member.trouble():
                self._replace(member, reason)
        oldest = time.monotonic() - self._config.start_timeout_seconds
        if all(member.info is None and member.started_at < oldest for member in self._members):
            raise self._too_slow()  # their node may be gone for good: replacements would wait for ever

    def _replace(self, member: Member, reason: str) -> None:
        import ray

        self._deaths += 1
        _log.warning("replica %s is gone (%d of pool '%s'): %s", member.replica_id, self._deaths, self._name, reason)
        with suppress(Exception):
            ray.kill(member.handle)
        self._members.remove(member)
        if self._generation is not None:
            self._generation[1].forget(member.replica_id, reason, blame=True)
        if self._deaths > self._max_restarts:
            raise GaveUpError(
                f"pool '{self._name}': {self._deaths} replicas died, the last ({member.replica_id}): {reason}. "
                "What is committed is kept; the same command goes on"
            )
        self._members.append(start_member(self._name, member.number, self._config))

    def _too_slow(self) -> EngineError:
        config = self._config
        return EngineError(
            f"pool '{self._name}': no replica was ready in {config.start_timeout_seconds:.0f} s; "
            f"has the cluster a node with {config.gpus:g} free GPUs and {config.cpus:g} free CPUs? "
            "Otherwise raise start_timeout_seconds"
        )
