"""Ranks die by SIGKILL at every kind of moment. What the job says and makes in the end is what it would have said and made unharmed."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.training.build_job import make_job, write_inputs
from tests.training.gang import Kill, result, run_gang, said, start_gang, starts, wait_for
from training.metrics import read_metrics

SETTINGS = {"rows_per_step": 5, "max_steps": 10, "epochs": 4, "checkpoint_every_steps": 2, "weight_decay": 0.1}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def unharmed(inputs, tmp_path_factory):
    """What a job on two ranks says and makes when nothing happens to it, by ZeRO stage."""
    results = {}

    def of_stage(stage):
        if stage not in results:
            job = make_job(tmp_path_factory.mktemp("unharmed"), *inputs, zero_stage=stage, **SETTINGS)
            assert run_gang(job, 2) == [0, 0], said(job)[-3000:]
            results[stage] = result(job)
        return results[stage]

    return of_stage


def story(value):
    """Names a test after its kills; where the job was resumed follows from them."""
    return "-then-".join(f"{kill.moment}-of-{kill.rank}" for kill in value if isinstance(kill, Kill))


def killed_and_resumed(job, kills):
    for kill in kills:
        assert run_gang(job, 2, kill)[kill.rank] == -signal.SIGKILL, said(job)[-3000:]
    assert run_gang(job, 2) == [0, 0], said(job)[-3000:]
    return result(job)


def test_a_job_whose_rank_dies_before_a_checkpoint_is_marked_ends_as_if_nothing_had_happened(
    inputs, unharmed, tmp_path
):
    job = make_job(tmp_path, *inputs, zero_stage=2, **SETTINGS)
    assert killed_and_resumed(job, [Kill(0, "before-marker", 2)]) == unharmed(2)
    assert starts(job) == [0, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "resumed_at"),
    [
        ([Kill(1, "before-update", 6)], [0, 4]),
        ([Kill(0, "before-update", 1)], [0, 0]),
        ([Kill(0, "while-deepspeed-writes", 3)], [0, 2]),
        ([Kill(1, "while-deepspeed-writes", 2)], [0, 2]),
        ([Kill(0, "after-marker", 2)], [0, 4]),
        ([Kill(0, "during-rotation", 1)], [0, 6]),
        ([Kill(0, "during-rotation", 2), Kill(1, "after-loading"), Kill(0, "before-marker")], [0, 8, 8]),
        ([Kill(0, "before-marker", 2), Kill(0, "before-marker"), Kill(1, "while-deepspeed-writes")], [0, 2, 2, 2]),
        ([Kill(0, "before-publishing")], [0, 10]),
        ([Kill(0, "after-publishing")], [0]),
    ],
    ids=story,
)
def test_wherever_a_rank_is_killed_the_job_ends_as_if_nothing_had_happened(
    inputs, unharmed, tmp_path, kills, resumed_at
):
    job = make_job(tmp_path, *inputs, zero_stage=2, **SETTINGS)
    assert killed_and_resumed(job, kills) == unharmed(2)
    assert starts(job) == resumed_at


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_job_whose_ranks_are_killed_at_random_times_ends_as_if_nothing_had_happened(
    inputs, unharmed, tmp_path, stage
):
    rng, job, kills = random.Random(stage), make_job(tmp_path, *inputs, zero_stage=stage, **SETTINGS), 0
    while kills < 5:
        ranks, before = start_gang(job, 2), len(starts(job))
        while len(starts(job)) == before and all(rank.is_alive() for rank in ranks):
            time.sleep(0.01)
        # After up to three more steps, whatever they take here, and some time into the next one or a checkpoint.
        until = starts(job)[-1] + rng.randint(0, 3)
        while len(read_metrics(Path(job.metrics))) < until and all(rank.is_alive() for rank in ranks):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        victim = rng.choice(ranks)
        if victim.exitcode is not None:
            break
        os.kill(victim.pid, signal.SIGKILL)
        kills += 1
        assert -signal.SIGKILL in wait_for(ranks), said(job)[-3000:]
    if not (Path(job.output)).exists():
        assert run_gang(job, 2) == [0, 0], said(job)[-3000:]
    assert kills
    assert result(job) == unharmed(stage)
