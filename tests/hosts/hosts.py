"""Hosts on one machine: Linux namespaces with addresses, a process table, /tmp/ray and shared memory of their own, on one bridge.

A host is a process that waits in its namespaces. All that runs on it dies with it, and the kernel takes its network along: nothing has to
be cleaned up but the bridge. The rest of the file system is shared, as over NFS.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.end_to_end.live_run import ROOT

TOOLS = ("ip", "unshare", "nsenter", "mount")
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "HOME": "/tmp/ray/home",  # Ray keeps a token there; it is the host's own
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
}
RAY = str(Path(sys.executable).with_name("ray"))
OBJECT_STORE_BYTES = 80 * 2**20
_INIT = """
set -e
hostname "$1"
mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && mkdir /tmp/ray/home
mount -t tmpfs -o size=512m tmpfs /dev/shm
mount --bind "$2" /etc/hosts
ip link set lo up
touch "$3"
sleep infinity & wait
"""
"""Bash waits, and so collects processes that lost their parents, as an init must."""


@dataclass(frozen=True, slots=True)
class Host:
    """A host that is up.

    Attributes:
        name: Host name, which all others can resolve.
        address: IPv4 address.
        keeper: The process that made its namespaces; its only child is the host's init.
        link: The bridge's end of its cable.
    """

    name: str
    address: str
    keeper: subprocess.Popen[bytes]
    link: str

    @property
    def init(self) -> int:
        """Process id, outside, of its first process."""
        return int(Path(f"/proc/{self.keeper.pid}/task/{self.keeper.pid}/children").read_text().split()[0])


class Hosts:
    """A network of hosts. No host reaches this machine's network, and nothing of it is changed but for one bridge.

    Args:
        environment: Of all that runs on them, on top of `ENVIRONMENT`.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = {**os.environ, **ENVIRONMENT, **environment}
        self._token = secrets.token_hex(2)
        self._net = f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(256)}"
        self._bridge = f"psi{self._token}"
        self._folder = Path(tempfile.mkdtemp(prefix="psi-hosts"))
        self._names = self._folder / "hosts"
        self._names.write_text("127.0.0.1 localhost\n")
        self._processes: list[subprocess.Popen[bytes]] = []
        self.hosts: list[Host] = []
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("link", "set", self._bridge, "up")

    def add_host(self, name: str) -> Host:
        """Bring a host up."""
        number = len(self.hosts) + 10
        address, link, ready = f"{self._net}.{number}", f"{self._bridge}v{number}", self._folder / f"{name}.ready"
        unshare = ["unshare", "--net", "--mount", "--uts", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        with self._names.open("a") as names:
            names.write(f"{address} {name}\n")
        with (self._folder / f"{name}.log").open("wb") as log:
            init = ["bash", "-c", _INIT, "init", name, str(self._names), str(ready)]
            keeper = subprocess.Popen([*unshare, *init], stdout=log, stderr=log)
        host = Host(name, address, keeper, link)
        self.hosts.append(host)
        end = time.monotonic() + 60
        while not ready.exists():
            assert keeper.poll() is None, f"host {name} did not come up"
            assert time.monotonic() < end, f"host {name} did not come up in 60 s"
            time.sleep(0.01)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(host.init))
        _ip("link", "set", link, "master", self._bridge, "up")
        for arguments in (("addr", "add", f"{address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
            self.run(host, ["ip", *arguments], check=True)
        return host

    def start(
        self, host: Host, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command on a host; what it says goes to `log`."""
        with log.open("wb") as stream:
            variables = {**self._environment, **(environment or {})}
            inside = [*_enter(host), *command]
            process = subprocess.Popen(inside, stdout=stream, stderr=stream, cwd=ROOT, env=variables)
        self._processes.append(process)
        return process

    def run(
        self, host: Host, command: Sequence[str], timeout_seconds: float = 60.0, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end."""
        inside = [*_enter(host), *command]
        return subprocess.run(
            inside,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=self._environment,
            timeout=timeout_seconds,
            check=check,
        )

    def start_ray(
        self, host: Host, cpus: float, head: Host | None = None, *, jobs: bool = False
    ) -> subprocess.Popen[bytes]:
        """Make a host a Ray node: of the cluster of `head`, or, without one, its head, which may take jobs at port 8265."""
        dashboard = ["--dashboard-host=0.0.0.0"] if jobs else ["--include-dashboard=false"]
        role = ["--head", "--port=6379", *dashboard] if head is None else [f"--address={head.address}:6379"]
        size = [f"--num-cpus={cpus:g}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        command = [RAY, "start", "--block", f"--node-ip-address={host.address}", *role, *size]
        return self.start(host, command, self._folder / f"{host.name}.ray.log")

    def ray_nodes(self, head: Host) -> set[str]:
        """Names of the hosts that the cluster of `head` takes to be alive; empty where it is not up."""
        script = f"import ray; ray.init('{head.address}:6379', logging_level=50, log_to_driver=False); "
        script += "print(*(n['NodeManagerHostname'] for n in ray.nodes() if n['Alive']))"
        answer = self.run(head, [sys.executable, "-c", script])
        return set(answer.stdout.split()) if answer.returncode == 0 else set()

    def partition(self, host: Host) -> None:
        """Cut a host off: its packets go nowhere, and nobody is told."""
        _ip("link", "set", host.link, "nomaster")

    def heal(self, host: Host) -> None:
        """Let it back in."""
        _ip("link", "set", host.link, "master", self._bridge)

    def terminate(self, process: subprocess.Popen[bytes]) -> None:
        """Send SIGTERM to a command that was started on a host; what was started is not it, but what waits for it."""
        (command,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(command), signal.SIGTERM)

    def kill(self, host: Host) -> None:
        """Pull its plug: everything on it is gone at once."""
        os.kill(host.init, signal.SIGKILL)
        host.keeper.wait()
        self.hosts.remove(host)

    def close(self) -> None:
        """Remove all hosts and the bridge."""
        for host in list(self.hosts):
            if host.keeper.poll() is None:
                self.kill(host)
        for process in self._processes:
            process.wait()
        _ip("link", "del", self._bridge)
        shutil.rmtree(self._folder)


@contextmanager
def some_hosts(environment: Mapping[str, str] | None = None) -> Iterator[Hosts]:
    """Hosts while the block runs."""
    hosts = Hosts(environment or {})
    try:
        yield hosts
    finally:
        hosts.close()


def why_not() -> str:
    """Why there can be no hosts here, or empty."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"hosts need {', '.join(missing)}"
    if os.geteuid() != 0:
        return "hosts need root"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return f"no namespaces here: {tried.stderr.decode().strip()}" if tried.returncode else ""


def _enter(host: Host) -> list[str]:
    return ["nsenter", f"--target={host.init}", "--net", "--mount", "--uts", "--pid", "--ipc"]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
