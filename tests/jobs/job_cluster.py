"""A Ray cluster that takes jobs, with token authentication, in a home of its own."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.end_to_end.live_run import PSI, ROOT

RAY = str(Path(sys.executable).with_name("ray"))
START_SECONDS = 90.0


@dataclass
class JobCluster:
    """A head that runs.

    Attributes:
        address: Of its dashboard.
        token: What it wants to be told.
        folder: Where all of it lies.
        environment: Of those who may ask it.
    """

    address: str
    token: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def psi(self, *words: str, **changed: str | None) -> subprocess.CompletedProcess[str]:
        """Run a `psi` command to its end; variables of its environment can be changed or, with None, left out."""
        environment = {name: value for name, value in {**self.environment, **changed}.items() if value is not None}
        return subprocess.run([PSI, *words], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)

    def start_psi(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a `psi` command."""
        with log.open("wb") as stream:
            return subprocess.Popen(
                [PSI, *words], stdout=stream, stderr=stream, cwd=ROOT, env=self.environment, preexec_fn=heed_interrupts
            )


@contextmanager
def job_cluster(cpus: int) -> Iterator[JobCluster]:
    """A head while the block runs; nothing of it is left afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="psi-jobs-", dir="/tmp"))  # Ray's sockets want a short path
    (folder / "home").mkdir()
    port, token = free_port(), secrets.token_hex(32)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "HOME": str(folder / "home"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    ports = ["--port=0", f"--dashboard-port={port}", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"]
    ports += [f"--{name}={free_port()}" for name in ("ray-client-server-port", "dashboard-agent-listen-port")]
    size = [f"--num-cpus={cpus}", f"--object-store-memory={80 * 2**20}", f"--temp-dir={folder}/ray"]
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(
            [RAY, "start", "--head", "--block", *ports, *size], stdout=log, stderr=log, env=environment, cwd=folder
        )
    cluster = JobCluster(f"http://127.0.0.1:{port}", token, folder, environment)
    try:
        _wait(cluster, port, head)
        yield cluster
    finally:
        head.terminate()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(cluster: JobCluster, port: int, head: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert head.poll() is None, (cluster.folder / "head.log").read_text()
        assert time.monotonic() < end, "no dashboard"
        time.sleep(0.1)


def heed_interrupts() -> None:
    """Without this, tests that were started in the background hand down that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
