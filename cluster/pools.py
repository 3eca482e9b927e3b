"""Pools of replicas: start all at once, ask them, have them generate, replace those that die."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from cluster.asking import Asking, Chunk
from cluster.commit_watch import CommitWatch
from cluster.coordinator_calls import RemoteCoordinator
from cluster.crew import Crew
from cluster.energy_book import EnergyBook
from cluster.engine_book import EngineBook
from cluster.engine_count import EngineCount
from cluster.placement import none_in_time
from cluster.pool_books import PoolBooks
from cluster.pool_member import Member, error_of, is_death
from cluster.protocol import GenerateJob
from generation.engines.config import PoolConfig
from generation.errors import EngineDeadError, RunLockedError, StorageError
from generation.flows import FlowCall, FlowResult

LEAST_RESTARTS = 5
_CHUNKS_AT_ONCE = 2
"""Chunks of an ask in one replica, so that it has a next one while the first ends."""

_LEAVE_SECONDS = 30.0
_STOP_SECONDS = 20.0


class Pool:
    """Replicas of one engine. One thread uses it.

    Args:
        name: Of the pool; part of its replicas' names.
        config: Its section of the recipe.
        max_restarts: Engines that may die within an hour, with nothing done in between, before the pool gives up. Default: 5, or the number
            of replicas where that is more.
        energy: Where what its replicas use is booked.
        engines: Where it is noted how many of them there are.
    """

    def __init__(
        self,
        name: str,
        config: PoolConfig,
        max_restarts: int | None = None,
        energy: EnergyBook | None = None,
        engines: EngineBook | None = None,
    ) -> None:
        self._name = name
        self._books = PoolBooks(name, energy, engines)
        self._config = config
        limit = max(LEAST_RESTARTS, config.replicas) if max_restarts is None else max_restarts
        self._crew = Crew(name, config, limit, self._on_gone)
        self._generation: tuple[GenerateJob, Any] | None = None
        self._commits = CommitWatch()

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
        self._crew.fill()
        deadline = time.monotonic() + self._config.start_timeout_seconds
        while len(self._crew.ready()) < wait_for:
            if time.monotonic() > deadline:
                raise none_in_time(self._name, self._config)
            self._look(timeout=1.0)
            self._tend()
            if not self._crew.ready():
                self._books.wait(self.count())

    def count(self) -> EngineCount:
        """How many engines there are, and should be."""
        return self._crew.count()

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
        self._crew.fill()
        for member in self._crew.ready():
            member.watch()
        open_chunks: dict[Any, tuple[Member, Chunk]] = {}
        while not asking.done:
            for member in self._crew.ready():
                while member.chunks < _CHUNKS_AT_ONCE and (chunk := asking.next_chunk()) is not None:
                    member.chunks += 1
                    open_chunks[member.handle.ask.remote(chunk.calls, chunk.budget)] = (member, chunk)
            for reference in self._look(list(open_chunks), timeout=1.0):
                member, chunk = open_chunks.pop(reference)
                member.chunks -= 1
                self._take(asking, reference, member, chunk)
                on_results(asking.num_results)
            self._tend()
            for reference in [each for each, (member, _) in open_chunks.items() if member not in self._crew.members]:
                asking.lose(open_chunks.pop(reference)[1])
        return asking.results()

    def start_generation(self, job: GenerateJob, coordinator: Any) -> None:
        """Have every replica, also those that are not ready yet, lease units from the coordinator actor until it is told to leave."""
        self._generation = (job, coordinator)
        self._commits = CommitWatch()
        self._books.begin(coordinator)
        self._crew.fill()
        for member in self._crew.ready():
            self._generate(member)

    def tend(self, coordinator: Any) -> None:
        """Replace what died or hangs, and have what became ready generate. Waits for no replica.

        Raises:
            EngineError: No replica is left, and none became ready in `start_timeout_seconds`.
            GaveUpError: Too many replicas died.
            StorageError: A replica could not write or commit; nor would another.
            RunLockedError: Another driver has taken the run over.
        """
        if self._generation is not None:
            self._generation = (self._generation[0], coordinator)
            if self._commits.has_grown(coordinator):
                self._crew.deaths.progress()
        self._look(timeout=0)
        self._tend()

    def recall(self, replicas: int) -> None:
        """So many are needed: where far fewer generate, have those back that had left; where enough do, wait for no more nodes."""
        self._crew.withdraw(replicas)
        if self._crew.is_short_of(replicas):
            self._crew.fill()
            for member in self._crew.ready():
                self._generate(member)

    def stop_generation(self) -> None:
        """Have the replicas stop at once; what is not committed is dropped. One that does not listen is replaced."""
        import ray

        self._generation = None
        self._books.end()
        busy = [member for member in self._crew.members if member.generating is not None]
        for member in busy:
            member.handle.leave.remote()
        if busy:
            ray.wait([member.generating for member in busy], num_returns=len(busy), timeout=_LEAVE_SECONDS)
        self._look(timeout=0)
        for member in busy:
            if member.generating is not None:
                self._crew.lose(member, EngineDeadError(f"did not stop in {_LEAVE_SECONDS:.0f} s"))

    def close(self) -> None:
        """Stop all replicas."""
        import ray

        self._books.left(*self._crew.members)
        stopping = [member.handle.stop.remote() for member in self._crew.members if member.info is not None]
        if stopping:
            ray.wait(stopping, num_returns=len(stopping), timeout=_STOP_SECONDS)
        self._crew.close()
        self._books.close()

    def _generate(self, member: Member) -> None:
        if self._generation is not None and member.generating is None and not member.draining:
            member.watch()
            job, coordinator = self._generation
            member.generating = member.handle.generate.remote(job, RemoteCoordinator(coordinator))

    def _look(self, others: list[Any] | None = None, timeout: float = 0) -> list[Any]:
        """Wait for anything that the replicas were told to do, see to it, and return which of `others` are done."""
        import ray

        watched = {member.starting: member for member in self._crew.members if member.info is None}
        watched |= {member.generating: member for member in self._crew.members if member.generating is not None}
        references = [*watched, *(others or [])]
        if not references:
            time.sleep(min(timeout, 0.1))  # all have failed, and are not due again yet
            return []
        done, _ = ray.wait(references, timeout=timeout)
        if timeout or len(references) > 1:  # collect whatever else is done by now
            done, _ = ray.wait(references, num_returns=len(references), timeout=0)
        for reference in done:
            if reference in watched and watched[reference] in self._crew.members:
                self._see_to(watched[reference], reference)
        return [reference for reference in done if reference not in watched]

    def _see_to(self, member: Member, reference: Any) -> None:
        value, error = error_of(reference)
        if reference is not member.starting:
            self._see_to_end(member, error)
        elif isinstance(error, StorageError):
            raise error
        elif error is not None:
            self._crew.failed_to_start(member, error)
        else:
            self._crew.joined(member, value)
            self._books.joined(member)
            self._generate(member)

    def _see_to_end(self, member: Member, error: Exception | None) -> None:
        """A replica's `generate` has ended."""
        member.generating = None
        if isinstance(error, StorageError | RunLockedError):
            raise error
        if error is not None:
            self._crew.lose(member, error)
        elif member.draining or (self._generation is not None and self._config.gpus):
            self._books.left(member)
            self._crew.release(member, "its node goes away" if member.draining else "it is not needed any more")

    def _take(self, asking: Asking, reference: Any, member: Member, chunk: Chunk) -> None:
        value, error = error_of(reference)
        if error is None:
            asking.finish(chunk, value)
            self._crew.deaths.progress()
            return
        if not is_death(error):
            raise error
        asking.lose(chunk)
        self._crew.lose(member, error)

    def _tend(self) -> None:
        self._crew.tend()
        self._books.look(self.count())

    def _on_gone(self, member: Member, reason: str, blame: bool) -> None:
        if self._generation is not None:
            self._generation[1].forget.remote(member.replica_id, reason, blame)
