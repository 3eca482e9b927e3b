"""Ray's own autoscaler, given the cluster of an overlay, brings workers for a run and takes them away once its rows are made."""

import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.k8s.manifests import ROOT, find, plant, read
from tests.k8s.operator_stand_in import Operator
from tests.k8s.test_entrypoints import FOLDER, write_recipe

WORKERS = "RayJob/psi-generate spec.rayClusterSpec.workerGroupSpecs.0"
TWO_WORKERS = ["pools.small.replicas=2", "pools.small.cpus=1.5"]
GONE_SECONDS = 180.0


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for the names of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="k8s", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make the API server's certificate with")
def test_a_cluster_grows_for_a_run_and_shrinks_to_its_head_while_the_dataset_is_written(
    tmp_path: Path, short_folder: Path
) -> None:
    manifests = read("cpu-smoke")
    write_recipe(manifests, tmp_path)
    plant(manifests, f"{WORKERS}.maxReplicas", 2)
    plant(manifests, "RayJob/psi-generate spec.rayClusterSpec.autoscalerOptions.idleTimeoutSeconds", 10)
    job = find(manifests, "RayJob", "psi-generate")["spec"]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "HOME": str(short_folder)}
    environment = {**os.environ, **token, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    operator = Operator(job["rayClusterSpec"], short_folder, environment)
    with operator.running():
        program, *arguments = shlex.split(job["entrypoint"].replace(FOLDER, str(tmp_path)))
        assert program == "psi"
        sealing, log = tmp_path / "sealing", tmp_path / "log"
        words = [sys.executable, "-m", "tests.cluster.sealing", str(sealing), *arguments, *TWO_WORKERS]
        with log.open("wb") as stream:
            driver = subprocess.Popen(words, env={**environment, "RAY_ADDRESS": operator.address}, stderr=stream)
        try:
            while not sealing.exists():
                assert driver.poll() is None, log.read_text()[-3000:]
                time.sleep(0.5)
            assert max(operator.replicas) == 2
            until = time.monotonic() + GONE_SECONDS
            while operator.workers and time.monotonic() < until:
                time.sleep(0.5)
            assert operator.workers == []
            assert operator.replicas[-1] == 0
            sealing.unlink()
            assert driver.wait(GONE_SECONDS) == 0, log.read_text()[-3000:]
        finally:
            driver.kill()
    assert (tmp_path / "runs/smoke/dataset/round-0/SEALED.json").is_file()
