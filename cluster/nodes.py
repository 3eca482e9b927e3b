"""The nodes of the cluster: which go away, and which engines keep dying on."""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.deaths import NODE_DEATHS

NODES_SECONDS = 5.0
"""How often the cluster is looked at."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive.

    Attributes:
        node_id: Ray's id.
        draining: It goes away soon; Ray places nothing there any more.
        resources: All that it has, by Ray's names.
    """

    node_id: str
    draining: bool
    resources: Mapping[str, float]


def nodes_to_avoid(nodes: Iterable[Node], needed: Mapping[str, float], deaths: Mapping[str, int]) -> frozenset[str]:
    """Nodes on which too many engines died. Where that is every node that could hold a replica, the least bad of them are not avoided."""
    able = [
        node.node_id
        for node in nodes
        if not node.draining and all(node.resources.get(name, 0.0) >= amount for name, amount in needed.items())
    ]
    tolerated = max(NODE_DEATHS - 1, min((deaths.get(node, 0) for node in able), default=0))
    return frozenset(node for node in able if deaths.get(node, 0) > tolerated)


class NodeWatch:
    """The nodes as they were last seen.

    Args:
        pool: For whose replicas.
        needed: What a node must have to hold one.
    """

    def __init__(self, pool: str, needed: Mapping[str, float]) -> None:
        self._pool = pool
        self._needed = needed
        self._nodes: dict[str, Node] = {}
        self._looked_at = -NODES_SECONDS
        self._warned = frozenset[str]()

    @property
    def due(self) -> bool:
        """Whether it is time to look again."""
        return time.monotonic() - self._looked_at >= NODES_SECONDS

    def look(self) -> None:
        """Ask Ray."""
        self._nodes, self._looked_at = _live_nodes(), time.monotonic()

    def is_gone(self, node: str) -> bool:
        """Whether a node that was there is not any more."""
        return bool(node) and node not in self._nodes

    def goes_away(self, node: str) -> bool:
        """Whether a node is draining."""
        return node in self._nodes and self._nodes[node].draining

    def avoid(self, deaths: Mapping[str, int]) -> frozenset[str]:
        """Nodes where no replica shall be started; said when there are more of them, or when all are bad."""
        bad = frozenset(node for node, count in deaths.items() if count >= NODE_DEATHS and node in self._nodes)
        avoided = nodes_to_avoid(self._nodes.values(), self._needed, deaths)
        if bad - self._warned:
            _log.warning(
                "engines of pool '%s' keep dying on nodes %s; %s",
                self._pool, ", ".join(sorted(bad)),
                "they are avoided" if avoided == bad else "no other could take them all, so the least bad are still used",
            )  # fmt: skip
            self._warned |= bad
        return avoided


def _live_nodes() -> dict[str, Node]:
    import ray
    from ray._private.state import state  # Ray has no public way to draining nodes; its own Serve asks the same table

    draining = state.get_draining_nodes()
    return {
        node["NodeID"]: Node(node["NodeID"], node["NodeID"] in draining, node["Resources"])
        for node in ray.nodes()
        if node["Alive"]
    }
