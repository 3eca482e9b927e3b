"""The large and the small pool of a run, and one for a trained model, started when first asked for; and what they were asked, counted."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from cluster.energy_book import EnergyBook
from cluster.engine_book import EngineBook
from cluster.pools import Pool
from cluster.private_sends import SendBook
from cluster.recipe import Recipe
from generation.engines.config import PoolConfig
from generation.flows import FlowCall, FlowResult
from generation.storage import Store

_CHECK_SEQUENCES = 16
TOKEN_KINDS = ("requests", "prompt_tokens", "cached_tokens", "output_tokens")


@dataclass
class TokenBook:
    """Tokens by stage: `requests`, `prompt_tokens`, `cached_tokens`, `output_tokens`."""

    stages: dict[str, dict[str, int]] = field(
        default_factory=lambda: defaultdict(lambda: dict.fromkeys(TOKEN_KINDS, 0))
    )

    def add(self, stage: str, results: list[FlowResult]) -> None:
        """Count what some flows used."""
        for result in results:
            for kind in TOKEN_KINDS:
                self.stages[stage][kind] += getattr(result, kind)


class StagePools:
    """Starts each pool once, and in turns where the recipe wants it: then asking for one closes the other."""

    def __init__(self, recipe: Recipe, energy: EnergyBook, engines: EngineBook, sends: SendBook) -> None:
        self._recipe = recipe
        self._sends = sends
        self._energy = energy
        self._engines = engines
        self._open: dict[str, Pool] = {}
        self._later = frozenset[str]()

    def __enter__(self) -> "StagePools":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def large(self) -> Pool:
        """The pool that writes principles; a recipe that needs it has one."""
        return self._get("large")

    def small(self) -> Pool:
        """The pool that writes instances."""
        return self._get("small")

    def trained(self, model: str, *, to_check: bool = False) -> Pool:
        """A pool of the small one's form that serves the model in a folder, alone on the devices.

        Args:
            model: The folder, local or in a bucket; each node copies it from there into `run.scratch`.
            to_check: One replica for a few questions will do, with no graphs captured for its speed.
        """
        name = f"trained-{hashlib.sha256(model.encode()).hexdigest()[:6]}"
        if name not in self._open:
            self.close()
            copy = Path(self._recipe.run.scratch) / "models" / name
            self._start(name, _serving(self._recipe.pools.small, Store(model), copy, to_check=to_check))
        return self._open[name]

    def asker(self, name: str, stage: str, book: TokenBook) -> Callable[..., list[FlowResult]]:
        """`pool.ask` of the pool `name`, which is started at the first call; tokens are booked under `stage`."""

        def ask(calls: list[FlowCall], token_budget: int | None = None) -> list[FlowResult]:
            results = self._get(name).ask(calls, token_budget)
            book.add(stage, results)
            self._sends.add(name, results)
            return results

        return ask

    def plan(self, current: Set[str], later: Set[str]) -> None:
        """Only these pools are asked for from now on.

        Args:
            current: By the step that begins.
            later: By those after it.
        """
        self._later = frozenset(later)
        self._keep(current | later)

    def let_go(self) -> None:
        """The step under way asks none any more, so their nodes may go where no later one does."""
        self._keep(self._later)

    def close(self) -> None:
        """Stop all replicas."""
        self._keep(frozenset())

    def _keep(self, names: Set[str]) -> None:
        for name in self._open.keys() - names:
            self._open.pop(name).close()

    def _get(self, name: str) -> Pool:
        if name not in self._open:
            if self._recipe.cluster.placement == "turns" or self._open.keys() - {"large", "small"}:
                self.close()
            self._start(name, getattr(self._recipe.pools, name))
        return self._open[name]

    def _start(self, name: str, config: PoolConfig) -> None:
        pool = Pool(name, config, self._recipe.cluster.max_replica_restarts, self._energy, self._engines)
        self._open[name] = pool
        pool.start()


def _serving(small: PoolConfig, model: Store, copy: Path, *, to_check: bool) -> PoolConfig:
    local = {"model": model.path("")}
    changes = local if model.is_local else {"model": str(copy), "copied_from": model.uri}
    cheap = {"enforce_eager": True, "max_num_seqs": _CHECK_SEQUENCES} if to_check else {}
    engine = small.engine.model_copy(update=changes | cheap)
    return small.model_copy(update={"engine": engine} | ({"replicas": 1} if to_check else {}))
