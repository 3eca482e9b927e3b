"""The data of a step: whose it is, and when it is built."""

import threading
from dataclasses import dataclass

import pytest
import torch

from tests.training.build_job import make_job, write_dataset, write_model
from training.chat import load_encoder
from training.feed import Feed, step_data
from training.plan import make_plan
from training.prepare import prepare
from training.ranks import Ranks
from training.start import Training
from training.token_rows import open_rows


@dataclass
class WatchedPlan:
    """A plan that notes which steps are read from it, and fails at one of them."""

    plan: object
    fails_at: int = -1

    def __post_init__(self):
        self.read = {step: threading.Event() for step in range(self.plan.steps)}
        self.steps = self.plan.steps

    def step(self, index):
        self.read[index].set()
        if index == self.fails_at:
            raise OSError("the disk is gone")
        return self.plan.step(index)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    model = write_model(folder / "model")
    job = make_job(folder, model, write_dataset(folder / "dataset"), None, rows_per_step=5, epochs=2)
    encoder = load_encoder(job.model)
    files = prepare(job, encoder, 0, 1)
    data = open_rows(files)
    plan = make_plan(data.train.lengths, job.config, 0, "")
    return lambda rank=0, world=1, fails_at=-1: Training(
        job, Ranks(rank, world, torch.device("cpu")), encoder, files, data, WatchedPlan(plan, fails_at), None, None
    )


def test_the_next_step_is_built_before_it_is_asked_for_and_no_later_one(training):
    job = training()
    with Feed(job) as feed:
        feed.take(0)
        assert job.plan.read[1].wait(60)
        assert not job.plan.read[2].is_set()


def test_steps_come_as_they_are_in_the_plan_wherever_a_job_goes_on(training):
    job = training()
    with Feed(job) as feed:
        for step in range(2, job.plan.steps):
            found, wanted = feed.take(step)[0], step_data(job, step)
            assert [batch.input_ids.tolist() for batch in found.batches] == [
                batch.input_ids.tolist() for batch in wanted.batches
            ]


def test_what_goes_wrong_while_data_is_built_is_an_error_of_the_step_that_needs_it(training):
    with Feed(training(fails_at=1)) as feed:
        feed.take(0)
        with pytest.raises(OSError, match="the disk is gone"):
            feed.take(1)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_tokens_of_a_step_and_agree_on_its_totals(training, world):
    whole = step_data(training(), 0)
    parts = [step_data(training(rank, world), 0) for rank in range(world)]
    assert sum(part.rank_tokens for part in parts) == whole.rank_tokens == whole.tokens
    assert {(part.tokens, part.supervised_tokens, part.squares) for part in parts} == {
        (whole.tokens, whole.supervised_tokens, whole.squares)
    }
    positions = [batch.position_ids[batch.targets != -100] for part in parts for batch in part.batches]
    assert sum(len(each) for each in positions) == whole.supervised_tokens
