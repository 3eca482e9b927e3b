from io import StringIO
from pathlib import Path

import pytest

from cluster import stage_pools as stage_pools_module
from cluster.energy_book import EnergyBook
from cluster.engine_book import EngineBook
from cluster.private_sends import SendBook
from cluster.progress import ProgressLine
from cluster.recipe import load_recipe
from cluster.stage_pools import StagePools
from generation.arms import arm_spec
from generation.storage import Store
from tests.end_to_end.live_run import ROOT


class PoolOfNothing:
    def __init__(self, name: str, *_: object) -> None:
        self.name, self.is_open = name, False

    def start(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False


def test_a_pool_is_closed_as_soon_as_nothing_asks_for_it_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_pools_module, "Pool", PoolOfNothing)
    recipe, store = load_recipe(ROOT / "recipes/miniature/recipe.toml").recipe, Store(str(tmp_path))
    books = EnergyBook(store, "test"), EngineBook(store, "test", ProgressLine(StringIO(), lambda: 0.0))
    with StagePools(recipe, *books, SendBook(store, recipe)) as pools:
        large, small = pools.large(), pools.small()
        pools.plan({"small"}, {"small", "large"})
        pools.let_go()
        assert (large.is_open, small.is_open) == (True, True)
        pools.plan({"small"}, frozenset())
        assert (large.is_open, small.is_open) == (False, True)
        pools.let_go()
        assert not small.is_open
        assert pools.small().is_open


def test_an_arm_says_which_pools_make_its_rows() -> None:
    asked = {
        name: arm_spec(name).pools for name in ("base", "seeds", "psi", "large", "psi-minus-task", "small-written")
    }
    assert asked == {
        "base": frozenset(),
        "seeds": frozenset(),
        "psi": {"small"},
        "large": {"large"},
        "psi-minus-task": {"large", "small"},
        "small-written": {"small"},
    }
