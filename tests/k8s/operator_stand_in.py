"""Stands in for the API server and KubeRay's operator: keeps one RayCluster, and has processes of this machine for its pods.

It answers what Ray's own autoscaler asks, takes its patches, and starts and ends workers as they say. A pod is `ray start` with the
resources, labels and environment of its group.
"""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import ceil
from pathlib import Path
from typing import Any

from tests.k8s.manifests import Manifest, amount

NAME, NAMESPACE, HEAD = "psi-generate-abcde", "psi", "psi-generate-abcde-head"
RAY = str(Path(sys.executable).with_name("ray"))
ADDRESS = "127.0.0.1"
OBJECT_STORE_BYTES = 100 * 2**20
END_SECONDS = 60.0


class Operator:
    """One cluster.

    Args:
        spec: Its `rayClusterSpec`.
        folder: For certificates, logs and Ray's own files; its path must be short, because sockets lie in it.
        environment: Of all processes.
    """

    def __init__(self, spec: Manifest, folder: Path, environment: dict[str, str]) -> None:
        self.replicas: list[int] = []
        self._cluster: Manifest = {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "resourceVersion": "1"},
            "spec": spec,
        }
        self._folder = folder
        self._environment = environment
        self._gcs = f"{ADDRESS}:{free_port()}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._groups: dict[str, str] = {}
        self._started = 0
        self._lock = threading.RLock()

    @property
    def address(self) -> str:
        """Where drivers connect."""
        return self._gcs

    @property
    def workers(self) -> list[str]:
        """Worker pods that are there."""
        with self._lock:
            return [name for name in self._processes if self._groups.get(name, "") not in ("", "headgroup")]

    @contextmanager
    def running(self) -> Iterator[None]:
        """The API is served, and the head and the autoscaler run, while the block does."""
        server = self._serve()
        try:
            head = self._cluster["spec"]["headGroupSpec"]
            flags = ["--head", f"--port={self._gcs.partition(':')[2]}", f"--temp-dir={self._folder}/r", "--no-monitor"]
            self._start(HEAD, "headgroup", head, [*flags, "--include-dashboard=false"])
            self._run("autoscaler", self._autoscaler(), self._api_environment(server.server_port))
            yield
        finally:
            server.shutdown()
            for name in list(self._processes):
                self._end(name, signal.SIGKILL)

    def _serve(self) -> ThreadingHTTPServer:
        words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=kubernetes"]
        names = ["-addext", f"subjectAltName=IP:{ADDRESS}", "-keyout", "key.pem", "-out", "certificate.pem"]
        subprocess.run([*words, *names], cwd=self._folder, check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._folder / "certificate.pem", self._folder / "key.pem")
        server = ThreadingHTTPServer((ADDRESS, 0), _handler(self))
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def _api_environment(self, port: int) -> dict[str, str]:
        certificate, key = f"{self._folder}/certificate.pem", f"{self._folder}/key.pem"
        return {
            "KUBERNETES_SERVICE_HOST": ADDRESS,
            "KUBERNETES_SERVICE_PORT_HTTPS": str(port),
            "RAY_KUBERAY_CA_CERT_PATH": certificate,
            "RAY_KUBERAY_CLIENT_CERT_PATH": certificate,
            "RAY_KUBERAY_CLIENT_KEY_PATH": key,
            "RAY_HEAD_POD_NAME": HEAD,
            "KUBERAY_CRD_VER": "v1",
        }

    def _autoscaler(self) -> list[str]:
        words = ["kuberay-autoscaler", f"--cluster-name={NAME}", f"--cluster-namespace={NAMESPACE}"]
        return [RAY, *words, f"--gcs-address={self._gcs}"]

    def _start(self, name: str, group_name: str, group: Manifest, flags: list[str]) -> None:
        """A pod, with the options that the operator derives from its group, but sizes and ports of this machine."""
        container = group["template"]["spec"]["containers"][0]
        limits = container["resources"]["limits"]
        options = {
            "num-cpus": str(ceil(amount(limits["cpu"]))),
            "memory": str(int(amount(limits["memory"]))),
            **group["rayStartParams"],
            "object-store-memory": str(OBJECT_STORE_BYTES),
            "object-spilling-directory": f"{self._folder}/spill-{name}",
            "dashboard-agent-listen-port": str(free_port()),
            "node-ip-address": ADDRESS,
        }
        if group.get("labels"):
            options["labels"] = ",".join(f"{key}={value}" for key, value in group["labels"].items())
        told = {each["name"]: each["value"] for each in container.get("env", [])}
        told |= {"RAY_CLOUD_INSTANCE_ID": name, "RAY_NODE_TYPE_NAME": group_name, "RAY_enable_autoscaler_v2": "1"}
        self._groups[name] = group_name
        words = [RAY, "start", "--block", *flags, *(f"--{key}={value}" for key, value in options.items())]
        self._run(name, words, told)

    def _run(self, name: str, words: list[str], more: dict[str, str]) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                words, env=self._environment | more, stdout=log, stderr=log, start_new_session=True
            )

    def _end(self, name: str, how: signal.Signals) -> None:
        process = self._processes.pop(name)
        process.send_signal(how)
        try:
            process.wait(END_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def answer(self, path: str) -> Any:
        """What the API says at a path, or None."""
        with self._lock:
            if path.endswith(f"/rayclusters/{NAME}"):
                return self._cluster
            pods = {name: self._pod(name, group) for name, group in self._groups.items() if name in self._processes}
            if path.endswith("/pods"):
                return {"metadata": {"resourceVersion": "1"}, "items": list(pods.values())}
            return pods.get(path.rpartition("/")[2])

    def patch(self, operations: list[Manifest]) -> Manifest:
        """Change the cluster, and do as it says then."""
        with self._lock:
            for operation in operations:
                *keys, last = re.sub("^/", "", operation["path"]).split("/")
                place: Any = self._cluster
                for key in keys:
                    place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
                place[last] = operation["value"]
            self._reconcile()
            return self._cluster

    def _reconcile(self) -> None:
        for group in self._cluster["spec"]["workerGroupSpecs"]:
            name = group["groupName"]
            for worker in group.get("scaleStrategy", {}).get("workersToDelete", []):
                if worker in self._processes:
                    self._end(worker, signal.SIGTERM)
            if self.replicas[-1:] != [group["replicas"]]:
                self.replicas.append(group["replicas"])
            there = [worker for worker in self.workers if self._groups[worker] == name]
            for _ in range(group["replicas"] - len(there)):
                self._started += 1
                self._start(f"{NAME}-{name}-{self._started}", name, group, [f"--address={self._gcs}"])

    def _pod(self, name: str, group: str) -> Manifest:
        labels = {
            "ray.io/cluster": NAME,
            "ray.io/node-type": "head" if group == "headgroup" else "worker",
            "ray.io/group": group,
        }
        running = {"name": "ray", "state": {"running": {}}}
        return {
            "metadata": {"name": name, "labels": labels, "resourceVersion": "1"},
            "spec": {"containers": [{"name": "ray", "resources": {}}]},
            "status": {"phase": "Running", "podIP": ADDRESS, "containerStatuses": [running]},
        }


def _handler(operator: Operator) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(operator.answer(self.path.partition("?")[0]))

        def do_PATCH(self) -> None:
            self._say(operator.patch(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def _say(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(200 if value is not None else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]
