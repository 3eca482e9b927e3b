"""A Ray cluster of several raylets on this machine, as processes to look at and to kill."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.end_to_end.live_run import ROOT, descendants

OBJECT_STORE_BYTES = 80 * 2**20
SETTINGS = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""A raylet that was killed is missed after two seconds, not fifteen; one that merely lacks time has Ray's ten to answer."""
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


class Nodes:
    """A head without CPUs, where drivers and coordinators live, and workers with some.

    Args:
        workers: Nodes beside the head.
        cpus: Of each of them.
    """

    def __init__(self, workers: int, cpus: float) -> None:
        from ray.cluster_utils import Cluster

        self._cpus = cpus
        self._folder = tempfile.mkdtemp(prefix="psi", dir="/tmp")  # sockets' paths must be short
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": SETTINGS}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head | self._common())
        self.workers: list[Any] = []
        for _ in range(workers):
            self.add_worker()

    @property
    def address(self) -> str:
        """What a driver connects to."""
        return self._cluster.address

    def add_worker(self) -> None:
        """One more node. Ray waits half a minute for it, which a machine with much else to do may take: then it is asked again."""
        for last in (False, False, True):
            try:
                self.workers.append(self._cluster.add_node(num_cpus=self._cpus, **self._common()))
            except Exception:
                if last:
                    raise
            else:
                return

    def kill_worker(self, number: int) -> None:
        """Kill a node's raylet with -9; what belongs to it must end by itself."""
        node = self.workers.pop(number)
        os.kill(raylet_of(node), signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def titled(self, title: str) -> list[int]:
        """Ids of the processes of all nodes whose title begins so, as Ray names its actors: `ray::Replica`."""
        return sorted(pid for pids in self._by_node(title) for pid in pids)

    def spread(self, title: str) -> list[int]:
        """How many such processes there are on each node that has some."""
        return sorted(len(pids) for pids in self._by_node(title) if pids)

    def close(self) -> None:
        """Stop everything, replicas that were stopped with SIGSTOP included."""
        for pid in self.titled("ray::"):
            signal_if_there(pid, signal.SIGCONT)
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _by_node(self, title: str) -> list[list[int]]:
        raylets = [raylet_of(node) for node in self._cluster.list_all_nodes()]
        return [[pid for pid, name in descendants(raylet) if name.startswith(title)] for raylet in raylets]

    def _common(self) -> dict[str, Any]:
        return {"object_store_memory": OBJECT_STORE_BYTES, "temp_dir": self._folder}


def raylet_of(node: Any) -> int:
    """Process id of a node's raylet."""
    return node.all_processes["raylet"][0].process.pid


def signal_if_there(pid: int, number: signal.Signals) -> bool:
    """Send a signal; False where the process has ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def ray_nodes(workers: int, cpus: float) -> Iterator[Nodes]:
    """Nodes while the block runs."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)  # raylets, and so workers, inherit it
    try:
        nodes = Nodes(workers, cpus)
        try:
            yield nodes
        finally:
            nodes.close()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
