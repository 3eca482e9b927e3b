"""A node of a real Ray cluster is about to be taken away. The gang saves, leaves, and goes on on another node as if nothing had happened."""

import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.train_job import run_training
from tests.hosts.hosts import RAY
from tests.training.build_job import make_job, write_dataset, write_model
from tests.training.gang import run_gang, said
from tests.training.test_preemption import result, starts, until_some_steps

SETTINGS = {"rows_per_step": 5, "max_steps": 250, "epochs": 99, "checkpoint_every_steps": 1000, "ranks": 2}


@pytest.fixture
def cluster():
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # With its dashboard: what sweeps up behind Ray Train asks that, and without it takes this cluster's driver to be dead.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": port})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def drain(cluster, node):
    notice = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=500"]
    where = [f"--address={cluster.address}", f"--node-id={node.node_id}"]
    subprocess.run([RAY, "drain-node", *where, *notice], check=True)


@pytest.mark.slow
def test_a_gang_leaves_a_node_that_is_drained_and_goes_on_on_another(tmp_path, cluster):
    inputs = write_model(tmp_path / "model"), write_dataset(tmp_path / "dataset"), None
    unharmed = make_job(tmp_path / "unharmed", *inputs, **SETTINGS)
    assert run_gang(unharmed, 2) == [0, 0], said(unharmed)[-3000:]
    job = make_job(tmp_path / "job", *inputs, max_restarts=0, **SETTINGS)
    node = cluster.add_node(num_cpus=2)
    training = threading.Thread(target=run_training, args=(job,))
    training.start()
    until_some_steps(job)
    cluster.add_node(num_cpus=2)
    drain(cluster, node)
    training.join()
    assert len(starts(job)) == 2
    assert 3 <= starts(job)[1] < 250
    assert result(job) == result(unharmed)
    assert not list(Path(job.checkpoints).glob("ray"))
