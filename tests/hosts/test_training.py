"""One training job on two hosts, under torchrun: what happens to their link, and what happens to the job."""

import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.hosts import Host, Hosts, some_hosts, why_not
from tests.training.build_job import make_job, write_dataset, write_model
from tests.training.gang import ENVIRONMENT, run_gang, said
from tests.training.test_preemption import result, starts
from training.job import TrainingJob
from training.metrics import read_metrics

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not()), pytest.mark.slow]

SETTINGS = {"rows_per_step": 5, "max_steps": 200, "epochs": 99, "checkpoint_every_steps": 5, "zero_stage": 1}
NETWORK = {"environment": {"GLOO_SOCKET_IFNAME": "eth0"}}


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


def train_while_the_link_is_cut(job: TrainingJob, pair: tuple[Hosts, Host, Host], folder: Path, seconds: float) -> None:
    hosts, *both = pair
    logs = [folder / f"{host.name}.log" for host in both]
    running = [hosts.start(host, torchrun(job, folder), log, ENVIRONMENT) for host, log in zip(both, logs, strict=True)]
    end = time.monotonic() + 300
    while len(read_metrics(Path(job.metrics))) < 8:
        assert time.monotonic() < end, "\n".join(log.read_text()[-2000:] for log in logs)
        time.sleep(0.01)
    hosts.partition(both[1])
    time.sleep(seconds)
    hosts.heal(both[1])
    for process in running:
        assert process.wait(timeout=400) == 0, "\n".join(log.read_text()[-2000:] for log in logs)


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
