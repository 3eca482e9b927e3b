"""Real Ray, two nodes of two pretended GPUs each."""

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import crew as crew_module
from cluster.cores import claim_cores
from cluster.placement import Placement, end_actor, start_actor
from cluster.pools import Pool
from generation.engines.base import Request, Sampling
from generation.engines.config import PoolConfig
from generation.errors import EngineMemoryError, StorageError
from generation.flows import Flow, FlowCall
from tests.cluster.stand_in import scripted


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 2, "include_dashboard": False})
    nodes.add_node(num_cpus=4, num_gpus=2)
    variables = {"PYTHONPATH": str(Path(__file__).parents[2])}
    ray.init(nodes.address, log_to_driver=False, runtime_env={"env_vars": variables})
    yield nodes
    ray.shutdown()
    nodes.shutdown()


class Here:
    def place(self) -> tuple[str, str]:
        import ray

        return ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES", "")


def one(text: str) -> Flow:
    return (yield Request("", text, Sampling(20), "evaluate")).finish


def calls(count: int) -> list[FlowCall]:
    return [FlowCall(str(i), one, (f"q {i}",)) for i in range(count)]


def until(true: Callable[[], bool], pool: Pool) -> None:
    while not true():
        pool.tend(None)
        time.sleep(0.05)


@pytest.mark.usefixtures("cluster")
def test_fractions_share_gpus_and_several_gpus_are_of_one_node() -> None:
    import ray

    halves = [start_actor(Here, Placement(0.1, 0.5), {}, ()) for _ in range(8)]
    places = ray.get([handle.place.remote() for handle, _ in halves])
    assert sorted(Counter(places).values()) == [2, 2, 2, 2]
    for handle, group in halves:
        end_actor(handle, group)
    pairs = [start_actor(Here, Placement(0.1, 2.0), {}, ()) for _ in range(2)]
    places = ray.get([handle.place.remote() for handle, _ in pairs])
    assert {gpus for _, gpus in places} == {"0,1"}
    assert len({node for node, _ in places}) == 2
    for handle, group in pairs:
        end_actor(handle, group)


@pytest.mark.usefixtures("cluster")
def test_an_engine_of_several_nodes_gets_a_group_and_gives_it_back() -> None:
    import ray
    from ray.util.placement_group import placement_group_table

    for _ in range(2):  # the second could not start if the first had kept its GPUs
        handle, group = start_actor(Here, Placement(0.1, 0.0, bundles=4), {}, ())
        assert ray.get(handle.place.remote())[0]
        table = placement_group_table(group)
        assert len(set(table["bundles_to_node_id"].values())) == 2
        end_actor(handle, group)


@pytest.mark.usefixtures("cluster")
def test_nothing_is_placed_on_a_node_to_avoid() -> None:
    import ray

    nodes = [node["NodeID"] for node in ray.nodes()]
    for avoided, other in (nodes, nodes[::-1]):
        handle, group = start_actor(Here, Placement(0.1, 1.0, avoid=(avoided,)), {}, ())
        assert ray.get(handle.place.remote())[0] == other
        end_actor(handle, group)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("when", ["start", "work"])
def test_engines_that_run_out_of_memory_come_back_smaller(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "MEMORY_SECONDS", 0.0)
    with Pool("small", PoolConfig(engine=scripted(out_of_memory=when, max_in_flight=2), cpus=0.5)) as pool:
        pool.start()
        assert len(pool.ask(calls(300))) == 300
        assert [member.rung for member in pool._crew.members] == [1]


@pytest.mark.usefixtures("cluster")
def test_an_engine_that_fits_on_no_rung_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "MEMORY_SECONDS", 0.0)
    engine = scripted(out_of_memory="start", fits_at_rung=9)
    with Pool("small", PoolConfig(engine=engine, cpus=0.5)) as pool, pytest.raises(EngineMemoryError, match="planned"):
        pool.start()


@pytest.mark.usefixtures("cluster")
def test_trouble_with_storage_is_no_death_of_a_replica() -> None:
    with Pool("small", PoolConfig(engine=scripted(), cpus=0.5)) as pool:
        pool.start()
        with pytest.raises(StorageError, match="disk"):
            pool._see_to_end(pool._crew.members[0], StorageError("the disk is full"))
        assert len(pool._crew.ready()) == 1


def test_a_node_that_drains_and_then_dies_costs_no_death(cluster: Any) -> None:
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    with Pool("small", PoolConfig(engine=scripted(), cpus=0.5)) as pool:
        spot = cluster.add_node(num_cpus=2, resources={"spot": 1})
        others = tuple(node.node_id for node in cluster.list_all_nodes() if node.node_id != spot.node_id)
        pool._crew._nodes.avoid = lambda deaths: frozenset(others)
        pool.start()
        until(lambda: pool._crew.members[0].node == spot.node_id, pool)
        del pool._crew._nodes.avoid
        preempted = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline = int(1000 * (time.time() + 600))
        assert GcsClient(address=cluster.address).drain_node(spot.node_id, preempted, "spot", deadline)[0]
        until(lambda: [m.node in others for m in pool._crew.members if m.info is not None] == [True], pool)
        cluster.remove_node(spot, allow_graceful=False)
        assert len(pool.ask(calls(5))) == 5
        assert pool._crew.deaths.fruitless == 0


def test_cores_are_claimed_once_and_free_again_with_their_process() -> None:
    import cluster.cores as cores_module

    all_cores = os.sched_getaffinity(0)
    prefix = f"test-{os.getpid()}-"
    taken: list[socket.socket] = []
    claim = cores_module._claim
    try:
        cores_module._claim = lambda name: claim(prefix + name)
        first = claim_cores(1)
        assert len(first) == 1
        assert os.sched_getaffinity(0) == set(first)
        os.sched_setaffinity(0, all_cores)
        assert claim_cores(len(all_cores)) == ()
        assert os.sched_getaffinity(0) == all_cores
        for held in cores_module._claims:
            held.close()
        assert len(claim_cores(len(all_cores))) == len(all_cores)
    finally:
        cores_module._claim = claim
        taken += cores_module._claims
        cores_module._claims.clear()
        for held in taken:
            held.close()
        os.sched_setaffinity(0, all_cores)
