"""Where replicas go: one request to Ray for each, all at once. The plan is pure; the rest is a thin layer over Ray."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from generation.engines.config import PoolConfig, VllmEngine
from generation.errors import EngineError

_NODE_LABEL = "ray.io/node-id"


@dataclass(frozen=True, slots=True)
class Placement:
    """What Ray is asked for.

    Attributes:
        cpus: Of the replica's own process.
        gpus: Of the replica's own process, on one node.
        bundles: A placement group of so many bundles of a GPU and `cpus` CPUs, on as few nodes as possible, the first of which holds the
            replica's process; 0: no group.
        avoid: Nodes where it shall not go.
    """

    cpus: float
    gpus: float
    bundles: int = 0
    avoid: tuple[str, ...] = ()


def plan_placement(config: PoolConfig, avoid: Iterable[str] = ()) -> Placement:
    """An engine of one node is one actor with all of its GPUs, so all of it dies together. One of several nodes brings a group for Ray's executor."""
    engine = config.engine
    if isinstance(engine, VllmEngine) and engine.pipeline_parallel > 1 and config.gpus:
        gpus = engine.tensor_parallel * engine.pipeline_parallel
        return Placement(config.cpus / gpus, 0.0, gpus, tuple(sorted(avoid)))
    return Placement(config.cpus, config.gpus, 0, tuple(sorted(avoid)))


def needed(config: PoolConfig) -> dict[str, float]:
    """What the node of a replica must have, by Ray's names."""
    placement = plan_placement(config)
    return {"CPU": placement.cpus, "GPU": 1.0 if placement.bundles else placement.gpus}


def none_in_time(pool: str, config: PoolConfig) -> EngineError:
    """An error for when no replica becomes ready."""
    return EngineError(
        f"pool '{pool}': no replica was ready in {config.start_timeout_seconds:.0f} s; "
        f"has the cluster a node with {config.gpus:g} free GPUs and {config.cpus:g} free CPUs? "
        "Otherwise raise start_timeout_seconds"
    )


def start_actor(
    actor: Any, placement: Placement, options: dict[str, Any], arguments: tuple[Any, ...]
) -> tuple[Any, Any]:
    """Ask Ray for an actor, which starts when there is room.

    Returns:
        Its handle, and its placement group or None.
    """
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    selector = {_NODE_LABEL: f"!in({','.join(placement.avoid)})"} if placement.avoid else {}
    options = {**options, "num_cpus": placement.cpus, "num_gpus": placement.gpus}
    if not placement.bundles:
        return ray.remote(actor).options(**options, label_selector=selector).remote(*arguments), None
    labels: Any = {"bundle_label_selector": [selector] * placement.bundles} if selector else {}
    bundles = [{"CPU": placement.cpus, "GPU": 1.0}] * placement.bundles
    group = placement_group(bundles, strategy="PACK", **labels)
    strategy = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
    return ray.remote(actor).options(**options, scheduling_strategy=strategy).remote(*arguments), group


def end_actor(handle: Any, group: Any) -> None:
    """Kill an actor with all of its processes, and free what it held."""
    import ray
    from ray.util.placement_group import remove_placement_group

    ray.kill(handle)
    if group is not None:
        remove_placement_group(group)
