"""One training job on two hosts, under torchrun and under Ray Train: what happens to their link, and what happens to the job."""

import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.hosts import Host, Hosts, some_hosts, why_not
from tests.hosts.test_partition import until
from tests.training.build_job import make_job, write_dataset, write_model
from tests.training.gang import ENVIRONMENT, run_gang, said
from tests.training.test_preemption import result, starts
from training.job import TrainingJob
from training.metrics import read_metrics

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not()), pytest.mark.slow]

SETTINGS = {"rows_per_step": 5, "max_steps": 200, "epochs": 99, "checkpoint_every_steps": 5, "zero_stage": 1}
NETWORK = {"environment": {"GLOO_SOCKET_IFNAME": "eth0"}}
DRIVER = """
import sys
from pathlib import Path
import ray
from cluster.train_job import run_training
from training.job import TrainingJob
ray.init(address=sys.argv[1])
run_training(TrainingJob.from_json(Path(sys.argv[2]).read_text()))
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, None]:
    folder = tmp_path_factory.mktemp("inputs")
    return write_model(folder / "model"), write_dataset(folder / "dataset"), None


@pytest.fixture(scope="module")
def unharmed(inputs: tuple[Path, str, None], tmp_path_factory: pytest.TempPathFactory) -> object:
    job = make_job(tmp_path_factory.mktemp("unharmed"), *inputs, **SETTINGS)
    assert run_gang(job, 2) == [0, 0], said(job)[-3000:]
    return result(job)


@pytest.fixture
def pair() -> Iterator[tuple[Hosts, Host, Host]]:
    with some_hosts() as hosts:
        yield hosts, hosts.add_host("one"), hosts.add_host("two")


def torchrun(job: TrainingJob, folder: Path) -> list[str]:
    """A host's part of the job, started again when it fails, as a pod is."""
    (folder / "job.json").write_text(job.to_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=one:29400", "--rdzv-id=job", "-m", "training.loop"]
    return ["bash", "-c", f"until {shlex.join([*command, str(folder / 'job.json')])}; do sleep 1; done"]


def cut(hosts: Hosts, host: Host, job: TrainingJob, seconds: float, log: Path) -> None:
    """Cut a host off in the middle of a job."""
    end = time.monotonic() + 300
    while len(read_metrics(Path(job.metrics))) < 8:
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.01)
    hosts.partition(host)
    time.sleep(seconds)
    hosts.heal(host)


def train_while_the_link_is_cut(job: TrainingJob, pair: tuple[Hosts, Host, Host], folder: Path, seconds: float) -> None:
    hosts, *both = pair
    logs = [folder / f"{host.name}.log" for host in both]
    running = [hosts.start(host, torchrun(job, folder), log, ENVIRONMENT) for host, log in zip(both, logs, strict=True)]
    cut(hosts, both[1], job, seconds, logs[0])
    for process, log in zip(running, logs, strict=True):
        assert process.wait(timeout=400) == 0, log.read_text()[-3000:]


def test_a_cut_of_a_few_seconds_is_survived_in_place(inputs, unharmed, pair, tmp_path):
    job = make_job(tmp_path, *inputs, **SETTINGS, **NETWORK, collective_timeout_seconds=60)
    train_while_the_link_is_cut(job, pair, tmp_path, seconds=6)
    assert starts(job) == [0]
    assert result(job) == unharmed


def test_after_a_longer_cut_the_gang_goes_on_from_its_checkpoint(inputs, unharmed, pair, tmp_path):
    job = make_job(tmp_path, *inputs, **SETTINGS, **NETWORK, collective_timeout_seconds=5)
    train_while_the_link_is_cut(job, pair, tmp_path, seconds=15)
    first, again = starts(job)
    assert first == 0
    assert again % 5 == 0
    assert again > 0
    assert result(job) == unharmed


def test_under_ray_train_too_the_gang_goes_on_from_its_checkpoint_after_a_longer_cut(inputs, unharmed, pair, tmp_path):
    hosts, one, two = pair
    head = hosts.add_host("head")
    hosts.start_ray(head, cpus=0)
    until("a head", lambda: hosts.ray_nodes(head) == {"head"})
    for host in (one, two):
        hosts.start_ray(host, cpus=1, head=head)
    until("workers", lambda: hosts.ray_nodes(head) == {"head", "one", "two"})
    job = make_job(tmp_path, *inputs, **SETTINGS, **NETWORK, collective_timeout_seconds=5, ranks=2)
    (tmp_path / "job.json").write_text(job.to_json())
    command = [sys.executable, "-c", DRIVER, f"{head.address}:6379", str(tmp_path / "job.json")]
    driver = hosts.start(head, command, tmp_path / "driver.log")
    cut(hosts, two, job, 15, tmp_path / "driver.log")
    assert driver.wait(timeout=400) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    lines = read_metrics(Path(job.checkpoints) / "starts.jsonl")
    assert [{place.partition(":")[0] for place in line["processes"]} for line in lines] == [{"one", "two"}] * 2
    assert lines[1]["step"] % 5 == 0
    assert lines[1]["step"] > 0
    assert result(job) == unharmed
