"""What placing replicas costs: of the planner on a table of 200 nodes, and of real raylets that are filled and released.

The planner is the real one (`cluster.crew` with `cluster.nodes`, `cluster.deaths` and `cluster.placement`), and a table of 200 nodes with
8 GPUs each stands in for Ray (`benchmarks.support.recorded_nodes`): 1,600 replicas are wanted; 12 nodes never come and 30 come late, 10
die, 8 drain, and on 3 every engine dies soon. It looks five times a second of the table's clock, as a driver does. `planner_seconds` is
the time in the planner's own calls for all of it. It fails unless every GPU that is there and good has a ready replica at the end, none
on a node that engines die on.

Then so many real raylets with pretended GPUs start, the real pool places a replica with the scripted engine on each GPU, each leases
units of a real coordinator and commits them, and all leave because nothing is left to do. `raylets_seconds` is all of that, from the first
raylet's start until Ray has every GPU back.
"""

import argparse
import json
import logging
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cluster.crew
import cluster.nodes
from benchmarks.support.recorded_nodes import GPUS_PER_NODE, RecordedNodes, read_table
from benchmarks.support.scripted_run import LEASE_SECONDS
from cluster.coordinator_link import coordinator_actor
from cluster.crew import Crew
from cluster.generation_loop import TICK_SECONDS
from cluster.pools import Pool
from cluster.protocol import GenerateJob, Tick
from generation.config import AnswerConfig, GenerationConfig, TaskConfig
from generation.engines.config import PoolConfig, ScriptedEngine
from generation.instances.flow import InstanceContext
from generation.instances.plan import Bundle, Cell, PlanRecord, even_parts
from generation.prompts.prompt_set import load_prompt_set
from generation.storage import Store
from generation.task import Task

_GPUS_PER_RAYLET = 2
_UNITS_PER_REPLICA = 4
_FLOWS_PER_UNIT = 8
_STORE_BYTES = 80 * 2**20
_REPLIES = ("<input>1 + 2?</input> <answer>3</answer>", "<input>2 + 2?</input> <answer>4</answer>")


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=1_600, help="that the planner is to place on the table")
    parser.add_argument("--seconds", type=float, default=1_200.0, help="of the table's clock")
    parser.add_argument("--raylets", type=int, default=16, help="0: none")
    options = parser.parse_args()
    logging.getLogger("cluster").setLevel(logging.ERROR)  # thousands of warnings of what the table has planned
    figures = planned(options.replicas, options.seconds)
    if options.raylets:
        figures |= on_raylets(options.raylets)
    ratio = {
        "ratio": round(figures["planner_seconds"] / options.seconds, 5),
        "ratio_to": "seconds of the table's clock, in which a driver looked every 0.2 s",
    }
    print(json.dumps({"benchmark": "placement", "replicas": options.replicas, **figures, **ratio}))


def planned(replicas: int, seconds: float) -> dict[str, Any]:
    """Play the table."""
    nodes, taken, longest, gone = RecordedNodes(read_table()), 0.0, 0.0, Counter[str]()
    config = PoolConfig(engine=ScriptedEngine(kind="scripted"), replicas=replicas, gpus=1.0)
    with (
        patch.object(cluster.crew, "start_member", nodes.start_member),
        patch.object(cluster.nodes, "_live_nodes", nodes.live_nodes),
        patch.object(time, "monotonic", nodes.clock),
    ):
        crew = Crew("small", config, replicas, lambda _, reason, __: gone.update([reason.split(":")[0]]))
        crew.fill()
        while nodes.now < seconds:
            told = list(nodes.advance(TICK_SECONDS, crew.members))
            began = time.perf_counter()
            for member, error in told:
                if error is None:
                    crew.joined(member, member.replica_id)
                else:
                    crew.lose(member, error)
            crew.tend()
            if told:
                crew.deaths.progress()  # others commit meanwhile
            spent = time.perf_counter() - began
            taken, longest = taken + spent, max(longest, spent)
    ready, good = crew.ready(), nodes.good()
    if len(ready) != min(replicas, places := GPUS_PER_NODE * len(good)):
        raise SystemExit(f"{len(ready)} replicas are ready, and there are {places} places for {replicas}")
    if bad := {member.node for member in ready} - good:
        raise SystemExit(f"replicas are ready on {', '.join(sorted(bad))}, where they die or are to leave")
    return {
        "planner_seconds": round(taken, 2),
        "longest_look_seconds": round(longest, 4),
        "ready": len(ready),
        "started": nodes.started,
        "gone": dict(gone),
    }


def on_raylets(raylets: int) -> dict[str, Any]:
    """Start raylets, fill every GPU of theirs with a replica that works, and have all leave."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ |= {
        "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
    }  # fmt: skip
    variables = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    began = time.perf_counter()
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": _STORE_BYTES, "include_dashboard": False},
    )
    try:
        for _ in range(raylets):
            nodes.add_node(wait=False, num_cpus=2, num_gpus=_GPUS_PER_RAYLET, object_store_memory=_STORE_BYTES)
        nodes.wait_for_nodes(120)
        ray.init(nodes.address, log_to_driver=False, runtime_env={"env_vars": variables})
        moments = {"started": time.perf_counter() - began}
        moments |= {what: at - began for what, at in _filled(raylets * _GPUS_PER_RAYLET).items()}
    finally:
        ray.shutdown()
        nodes.shutdown()
    return {
        "raylets": raylets,
        "light_replicas": raylets * _GPUS_PER_RAYLET,
        "raylets_seconds": round(moments["released"], 1),
        "until_seconds": {what: round(seconds, 1) for what, seconds in moments.items()},
    }


def _filled(replicas: int) -> dict[str, float]:
    """Place replicas, have each commit units, and wait for all GPUs; returns when each was done."""
    import ray

    engine = ScriptedEngine(kind="scripted", replies=_REPLIES, max_in_flight=_FLOWS_PER_UNIT, seconds_per_step=0.02)
    config = PoolConfig(engine=engine, replicas=replicas, gpus=1.0, cpus=1.0)
    moments: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        with Pool("small", config) as pool, coordinator_actor(store, LEASE_SECONDS) as link:
            pool.start(wait_for=replicas)
            moments["placed"] = time.perf_counter()
            units = replicas * _UNITS_PER_REPLICA
            link.call("add_records", [_record(units)])
            pool.start_generation(_job(store), link.handle)
            while link.call("progress").committed < units:
                pool.tend(link.handle)
                time.sleep(TICK_SECONDS)
            moments["filled"] = time.perf_counter()
            link.call("tick", Tick(enough=0))
            while ray.available_resources().get("GPU", 0.0) < replicas:
                pool.tend(link.handle)
                time.sleep(TICK_SECONDS)
            moments["released"] = time.perf_counter()
        wrote = {name.rpartition("-")[0] for name in store.names("rows/round-0")}
    if len(wrote) < replicas:
        raise SystemExit(f"{len(wrote)} of {replicas} replicas wrote anything")
    return moments


def _job(store: Store) -> GenerateJob:
    task = Task(TaskConfig(name="t", description="Add.", answer=AnswerConfig(kind="number"), seeds="x"), ())
    context = InstanceContext(
        "run", {"t": task}, load_prompt_set("chat", Path()), GenerationConfig(accepted_rows=1), "model"
    )
    return GenerateJob(store.uri, "run", context)


def _record(units: int) -> PlanRecord:
    cells, flows = tuple(Cell(f"c{i}", f"draft {i}") for i in range(8)), units * _FLOWS_PER_UNIT
    return PlanRecord(0, "t", 0, Bundle("b", ("p",), "D:", "A:"), cells, units, _FLOWS_PER_UNIT, even_parts(flows, 8))


if __name__ == "__main__":
    main()
