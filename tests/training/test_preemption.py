"""A rank hears that its machine is about to be taken away. All save at that step, leave, and go on elsewhere as if nothing had happened."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster.leaving import Leaving
from cluster.train_job import run_training
from generation.errors import PreemptedError
from tests.local_ray import local_ray
from tests.training.build_job import ROOT, make_job, write_dataset, write_model
from tests.training.gang import ENVIRONMENT, result, run_gang, said, start_gang, starts, wait_for
from training.metrics import read_metrics

SETTINGS = {"rows_per_step": 5, "max_steps": 100, "epochs": 40, "checkpoint_every_steps": 1000, "zero_stage": 1}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return write_model(folder / "model"), write_dataset(folder / "dataset"), None


@pytest.fixture(scope="module")
def unharmed(inputs, tmp_path_factory):
    job = make_job(tmp_path_factory.mktemp("unharmed"), *inputs, **SETTINGS)
    assert run_gang(job, 2) == [0, 0], said(job)[-3000:]
    return result(job)


def until_some_steps(job):
    end = time.monotonic() + 200
    while len(read_metrics(Path(job.metrics))) < 3:
        assert time.monotonic() < end, said(job)[-3000:]
        time.sleep(0.01)


@pytest.mark.parametrize("asked", [0, 1])
def test_when_one_rank_gets_sigterm_all_save_at_that_step_and_leave(inputs, unharmed, tmp_path, asked):
    job = make_job(tmp_path, *inputs, **SETTINGS)
    ranks = start_gang(job, 2)
    until_some_steps(job)
    os.kill(ranks[asked].pid, signal.SIGTERM)
    assert wait_for(ranks) == [143, 143], said(job)[-3000:]
    done = len(read_metrics(Path(job.metrics)))
    assert 3 <= done < 100
    assert f"asked to leave; saved after step {done} of 100" in said(job)
    assert run_gang(job, 2) == [0, 0], said(job)[-3000:]
    assert starts(job) == [0, done]
    assert result(job) == unharmed


@pytest.mark.slow
def test_torchrun_that_gets_sigterm_leaves_a_checkpoint_and_the_same_command_goes_on(inputs, unharmed, tmp_path):
    job = make_job(tmp_path, *inputs, **SETTINGS)
    (tmp_path / "job.json").write_text(job.to_json())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += [f"--rdzv-endpoint={place}", "-m", "training.loop", str(tmp_path / "job.json")]
    with (tmp_path / "output.log").open("ab") as log:
        start = {"env": {**os.environ, **ENVIRONMENT}, "cwd": ROOT, "stdout": log, "stderr": log}
        first = subprocess.Popen(command, **start)
        until_some_steps(job)
        first.send_signal(signal.SIGTERM)
        assert first.wait() != 0
        assert subprocess.run(command, check=False, **start).returncode == 0, said(job)[-3000:]
    done = starts(job)[1]
    assert 3 <= done < 100
    assert result(job) == unharmed


@pytest.mark.slow
def test_a_driver_that_gets_sigterm_has_its_ranks_save_and_leave_and_the_same_job_goes_on(inputs, unharmed, tmp_path):
    job = make_job(tmp_path, *inputs, ranks=2, **SETTINGS)

    def end() -> None:
        until_some_steps(job)
        os.kill(os.getpid(), signal.SIGTERM)

    def drive(leaving: Leaving) -> None:
        with leaving.heeded():
            run_training(job, leaving)

    with local_ray(cpus=3):
        threading.Thread(target=end, daemon=True).start()
        with pytest.raises(PreemptedError):
            drive(Leaving())
        done = len(read_metrics(Path(job.metrics)))
        assert 3 <= done < 100
        run_training(job)
    assert starts(job) == [0, done]
    assert result(job) == unharmed
