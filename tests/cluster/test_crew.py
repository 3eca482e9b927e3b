import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, ActorUnavailableError

from cluster import crew as crew_module
from cluster import pool_member as pool_member_module
from cluster.crew import Crew
from cluster.deaths import NODE_DEATHS, WINDOW_SECONDS, Deaths
from cluster.nodes import Node, NodeWatch, nodes_to_avoid
from cluster.placement import Placement, plan_placement
from cluster.pool_member import Member, start_member
from cluster.replica import Replica
from generation.engines.config import PoolConfig, VllmEngine
from generation.errors import EngineDeadError, EngineError, EngineMemoryError, GaveUpError
from tests.cluster.stand_in import scripted


class FakeMember(Member):
    def locate(self) -> None:
        pass

    def trouble(self) -> str:
        return ""

    def drain(self) -> None:
        self.draining = True

    def end(self) -> None:
        pass


class Stage:
    """A crew whose members are started by nobody, on nodes that the test makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.started: list[Placement] = []
        self.gone: list[tuple[str, bool]] = []
        self.nodes = {name: Node(name, draining=False, resources={"CPU": 8.0, "GPU": 8.0}) for name in ("a", "b")}
        monkeypatch.setattr(crew_module, "start_member", self._start)
        monkeypatch.setattr(NodeWatch, "look", lambda watch: watch.__dict__.update(_nodes=self.nodes, _looked_at=0.0))
        monkeypatch.setattr(pool_member_module, "UNEXPLAINED_SECONDS", 0.0)
        for name in ("MEMORY_SECONDS", "_RETRY_SECONDS"):
            monkeypatch.setattr(crew_module, name, 0.0)
        config = PoolConfig(engine=scripted(), **{"replicas": 2, **settings})
        self.crew = Crew("small", config, 3, lambda member, reason, blame: self.gone.append((member.replica_id, blame)))
        self.crew.fill()

    def _start(self, pool: str, number: int, config: PoolConfig, placement: Placement, rung: int) -> Member:
        self.started.append(placement)
        node = next(
            name for name in sorted(self.nodes) if name not in placement.avoid and not self.nodes[name].draining
        )
        return FakeMember(number, f"r{len(self.started)}", rung, None, None, None, node)

    def all_ready(self) -> None:
        for member in self.crew.members:
            self.crew.joined(member, "ready")


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stage]:
    return lambda **settings: Stage(monkeypatch, **settings)


def test_one_replica_that_cannot_start_stops_nothing_and_is_tried_again(stage: Callable[..., Stage]) -> None:
    crew = (one := stage()).crew
    crew.failed_to_start(crew.members[0], EngineError("a bad node"))
    crew.joined(crew.members[0], "ready")
    crew.tend()
    assert [member.info for member in crew.members] == ["ready", None]
    assert one.crew.deaths.fruitless == 0


def test_where_none_could_be_started_the_reason_is_raised(stage: Callable[..., Stage]) -> None:
    crew = stage().crew
    crew.failed_to_start(crew.members[0], EngineError("no such model"))
    with pytest.raises(EngineError, match="no such model"):
        crew.failed_to_start(crew.members[0], EngineError("no such model"))


def test_want_of_memory_moves_the_whole_pool_down_the_ladder_and_counts_as_no_death(
    stage: Callable[..., Stage],
) -> None:
    one = stage()
    first, second = one.crew.members
    for member in (first, second):
        one.crew.failed_to_start(member, EngineMemoryError("out of memory"))
    one.crew.tend()
    assert [member.rung for member in one.crew.members] == [1, 1]
    one.all_ready()
    one.crew.lose(one.crew.members[0], EngineMemoryError("out of memory"))
    one.crew.tend()
    assert [member.rung for member in one.crew.members] == [1, 2]
    assert one.crew.deaths.fruitless == 0
    assert {blame for _, blame in one.gone} == {False}


def test_below_the_last_rung_the_error_is_raised(stage: Callable[..., Stage]) -> None:
    crew = stage(replicas=1).crew
    for _ in range(3):
        crew.failed_to_start(crew.members[0], EngineMemoryError("out of memory"))
        crew.tend()
    with pytest.raises(EngineMemoryError):
        crew.failed_to_start(crew.members[0], EngineMemoryError("out of memory"))


def test_deaths_without_anything_done_end_the_run_and_others_do_not(stage: Callable[..., Stage]) -> None:
    one = stage()
    one.all_ready()
    for _ in range(6):
        one.crew.deaths.progress()
        one.crew.lose(one.crew.members[0], EngineDeadError("died"))
        one.crew.tend()
    assert one.started[-1].avoid == ("a",)
    for _ in range(2):
        one.crew.lose(one.crew.members[0], EngineDeadError("died"))
        one.crew.tend()
    with pytest.raises(GaveUpError, match="4 replicas died"):
        one.crew.lose(one.crew.members[0], EngineDeadError("died"))


def test_what_waits_for_a_node_is_asked_for_again_once_engines_keep_dying_on_one(stage: Callable[..., Stage]) -> None:
    one = stage(replicas=3)
    waiting = one.crew.members[2]
    waiting.node = ""
    for _ in range(NODE_DEATHS):
        assert waiting in one.crew.members
        one.crew.deaths.progress()
        one.crew.joined(one.crew.members[0], "ready")
        one.crew.lose(one.crew.members[0], EngineDeadError("died"))
        one.crew.tend()
        one.crew.members.sort(key=lambda member: member.number)
    assert waiting not in one.crew.members
    assert [member.number for member in one.crew.members] == [0, 1, 2]
    assert [placement.avoid for placement in one.started[-2:]] == [("a",), ("a",)]
    assert not any(blame for member, blame in one.gone if member == waiting.replica_id)


def test_what_went_with_its_node_is_nobodys_fault(stage: Callable[..., Stage]) -> None:
    one = stage()
    one.all_ready()
    del one.nodes["a"]
    one.crew.lose(one.crew.members[0], ActorDiedError())
    assert one.gone == [("r2", False), ("r1", False)]
    one.crew.tend()
    assert [member.node for member in one.crew.members] == ["b", "b"]
    assert one.crew.deaths.fruitless == 0


def test_where_calls_do_not_reach_a_replica_any_more_it_is_replaced_at_once_and_its_node_may_be_missed_later(
    stage: Callable[..., Stage],
) -> None:
    one = stage()
    one.all_ready()
    one.crew.lose(one.crew.members[0], ActorUnavailableError("socket closed", None))
    one.crew.tend()
    assert ([member.number for member in one.crew.members], one.gone) == ([1, 0], [])
    del one.nodes["a"]
    one.crew.tend()
    assert ("r1", False) in one.gone
    assert one.crew.deaths.fruitless == 0


def test_a_death_that_no_node_explains_counts(stage: Callable[..., Stage]) -> None:
    one = stage()
    one.all_ready()
    one.crew.lose(one.crew.members[0], ActorDiedError())
    assert (one.gone, one.crew.deaths.fruitless) == ([("r1", True)], 1)


def test_replicas_of_a_draining_node_finish_while_others_take_their_places(stage: Callable[..., Stage]) -> None:
    one = stage()
    one.all_ready()
    old = list(one.crew.members)
    for member in old:
        member.generating = "working"
    one.nodes["a"] = Node("a", draining=True, resources=one.nodes["a"].resources)
    one.crew.tend()
    assert all(member.draining for member in old)
    count = one.crew.count()
    assert (count.wanted, count.placed, count.draining, count.without_node) == (2, 4, 2, 0)
    assert len(one.crew.members) == 4
    assert one.crew.ready() == []
    for member in old:
        member.generating = None
    one.crew.tend()
    assert sorted(one.gone) == [("r1", False), ("r2", False)]
    assert len(one.crew.members) == 2
    assert one.crew.deaths.fruitless == 0


def test_a_replica_that_has_nothing_more_to_do_frees_its_gpu_and_comes_back_when_asked_for(
    stage: Callable[..., Stage],
) -> None:
    one = stage(gpus=1.0)
    one.all_ready()
    one.crew.release(one.crew.members[0], "it is not needed any more")
    one.crew.tend()
    assert [member.number for member in one.crew.members] == [1]
    one.crew.fill()
    assert sorted(member.number for member in one.crew.members) == [0, 1]


def test_replicas_that_wait_for_a_node_are_withdrawn_once_enough_have_one(stage: Callable[..., Stage]) -> None:
    crew = stage(replicas=3).crew
    crew.members[2].node = ""
    crew.withdraw(3)
    assert [member.number for member in crew.members] == [0, 1, 2]
    crew.withdraw(2)
    assert [member.number for member in crew.members] == [0, 1]
    assert (crew.count().wanted, crew.count().placed) == (2, 2)
    crew.fill()
    assert [member.number for member in crew.members] == [0, 1, 2]


def test_deaths_are_forgotten_after_an_hour() -> None:
    deaths = Deaths(limit=1)
    deaths.add("a", 0.0)
    deaths.add("a", WINDOW_SECONDS + 1.0)
    assert not deaths.too_many
    assert deaths.by_node(WINDOW_SECONDS + 1.0) == {"a": 1}
    deaths.add("a", WINDOW_SECONDS + 2.0)
    assert deaths.too_many


COUNTS = st.dictionaries(st.sampled_from("abcde"), st.integers(0, 6))


@given(st.sets(st.sampled_from("abcde"), min_size=1), COUNTS)
def test_a_node_is_always_left_and_only_bad_ones_are_avoided(names: set[str], deaths: dict[str, int]) -> None:
    nodes = [Node(name, draining=False, resources={"CPU": 1.0}) for name in names]
    avoided = nodes_to_avoid(nodes, {"CPU": 1.0, "GPU": 0.0}, deaths)
    left = names - avoided
    assert left
    assert all(deaths.get(name, 0) >= NODE_DEATHS for name in avoided)
    if avoided:
        assert max(deaths.get(name, 0) for name in left) < min(deaths[name] for name in avoided)


def test_nodes_that_could_hold_no_replica_are_no_way_out() -> None:
    small, large = (Node(name, draining=False, resources={"CPU": cpus}) for name, cpus in (("s", 1.0), ("l", 9.0)))
    assert nodes_to_avoid([small, large], {"CPU": 4.0}, {"l": 5}) == frozenset()
    assert nodes_to_avoid([small, large], {"CPU": 1.0}, {"l": 5}) == {"l"}


def test_gpus_of_one_node_belong_to_one_actor_and_those_of_several_to_a_group() -> None:
    def pool(gpus: float, **engine: int) -> PoolConfig:
        return PoolConfig(engine=VllmEngine(model="m", **engine), gpus=gpus, cpus=4.0)  # type: ignore[arg-type]

    assert plan_placement(pool(0.5)) == Placement(4.0, 0.5)
    assert plan_placement(pool(4, tensor_parallel=4), ["x"]) == Placement(4.0, 4.0, avoid=("x",))
    assert plan_placement(pool(4, tensor_parallel=2, pipeline_parallel=2)) == Placement(1.0, 0.0, bundles=4)


def test_the_engines_own_statistics_are_on_in_the_first_replica_of_a_pool_alone(monkeypatch: pytest.MonkeyPatch):
    started: list[dict[str, Any]] = []
    call = SimpleNamespace(remote=lambda *_: None)

    def start(actor: Any, placement: Placement, options: dict[str, Any], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        assert actor is Replica
        started.append(inspect.signature(Replica).bind(*arguments).arguments)
        return SimpleNamespace(ready=call, __ray_call__=call), None

    monkeypatch.setattr("cluster.pool_member.start_actor", start)
    config = PoolConfig(engine=scripted(), replicas=3)
    for number in (0, 1, 2, 0):
        start_member("small", number, config, plan_placement(config), 0)
    assert [arguments["canary"] for arguments in started] == [True, False, False, True]
