from dataclasses import replace

import numpy as np
import pytest

from generation.errors import TrainingError
from tests.training.build_job import conversations, make_job, write_dataset, write_model, write_rows
from training.chat import load_encoder
from training.data import IGNORED, make_batch
from training.plan import make_plan
from training.prepare import prepare
from training.token_rows import open_rows


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(str(write_model(tmp_path_factory.mktemp("model"))))


def texts(rows):
    return [rows.tokens(row).tolist() for row in range(len(rows.lengths))]


def encoded(encoder, talks):
    return [row.input_ids for row in encoder.encode(talks)]


def test_rows_are_the_dataset_and_then_the_human_examples_as_often_as_asked(tmp_path, encoder):
    human = write_rows(tmp_path / "human" / "seeds.parquet", conversations(3, 9))
    job = make_job(tmp_path / "job", tmp_path, write_dataset(tmp_path / "dataset", (5, 4)), human, seed_repeats=2)
    data = open_rows(prepare(job, encoder))
    wanted = conversations(5, 0) + conversations(4, 1) + conversations(3, 9) * 2
    assert texts(data.train) == encoded(encoder, wanted)
    tokens = [sum(map(len, encoded(encoder, part))) for part in (wanted[:9], wanted[9:])]
    assert [data.mix[name]["tokens"] for name in ("synthetic", "human")] == tokens
    assert {name: counts["rows"] for name, counts in data.mix.items()} == {"synthetic": 9, "human": 6}


def test_held_out_examples_are_in_no_bin_and_neither_is_a_row_with_their_text(tmp_path, encoder):
    unseen = write_rows(tmp_path / "human" / "held-out.parquet", [*conversations(3, 9), conversations(5, 0)[2]])
    job = make_job(tmp_path / "job", tmp_path, write_dataset(tmp_path / "dataset", (5, 4)), None, unseen)
    data = open_rows(prepare(job, encoder))
    assert texts(data.held_out["human"]) == encoded(encoder, [*conversations(3, 9), conversations(5, 0)[2]])
    plan = make_plan(data.train.lengths, job.config, 0, "")
    planned = [row for step in range(plan.steps) for rows in plan.step(step).bins for row in rows]
    trained = {tuple(data.train.tokens(row)) for row in planned}
    assert not trained & {tuple(row) for row in texts(data.held_out["human"])}
    assert (data.also_held_out, len(trained)) == (1, 8)


def test_held_out_synthetic_rows_follow_from_their_text_alone(tmp_path, encoder):
    chosen = []
    for counts in ((30, 20), (30, 20, 4), (30, 20)):
        folder = tmp_path / str(len(chosen))
        files = prepare(make_job(folder / "job", tmp_path, write_dataset(folder / "dataset", counts), None), encoder)
        data = open_rows(files[:2][:: -1 if chosen else 1], held_out_rows=7)
        held = {tuple(row) for row in texts(data.held_out["synthetic"])}
        assert len(held) == 7
        assert not held & {tuple(row) for row in texts(data.train)}
        assert len(texts(data.train)) == 43
        chosen.append(held)
    assert chosen[0] == chosen[1] == chosen[2]


def test_a_job_of_which_everything_is_held_out_is_refused(tmp_path, encoder):
    job = make_job(tmp_path / "job", tmp_path, write_dataset(tmp_path / "dataset", (5,)), None)
    with pytest.raises(TrainingError, match="nothing is left"):
        open_rows(prepare(job, encoder), held_out_rows=5)


def test_a_batch_restarts_positions_and_never_predicts_across_documents(tmp_path, encoder):
    job = make_job(tmp_path / "job", tmp_path, write_dataset(tmp_path / "dataset"), None)
    rows = open_rows(prepare(job, encoder)).train
    bins = [np.array([0, 1]), np.array([2]), np.empty(0, np.int64)]
    batch = make_batch(bins, rows, encoder.pad_id, flat=False)
    first, second = int(rows.lengths[0]), int(rows.lengths[1])
    assert batch.position_ids[0, : first + second].tolist() == [*range(first), *range(second)]
    assert batch.targets[0, first - 1] == IGNORED
    supervised = [(batch.targets[row] != IGNORED).sum().item() for row in range(3)]
    assert supervised == [rows.supervised[0] + rows.supervised[1], rows.supervised[2], 0]
    places = (batch.targets[0, : first + second - 1] != IGNORED).nonzero().flatten()
    assert batch.targets[0, places].tolist() == batch.input_ids[0, places + 1].tolist()
    flat = make_batch(bins, rows, encoder.pad_id, flat=True)
    assert flat.input_ids.tolist() == [batch.input_ids.flatten().tolist()]


@pytest.mark.parametrize("loss_on", ["last_assistant", "assistant", "all"])
def test_no_first_token_of_a_packed_document_is_ever_a_target(tmp_path, encoder, loss_on):
    talks = [talk + conversations(1, 50 + place)[0] for place, talk in enumerate(conversations(4, 3))]
    folder = tmp_path / "dataset"
    job = make_job(tmp_path / "job", tmp_path, write_dataset(folder, (3,)), None, loss_on=loss_on, max_tokens=500)
    job = replace(job, human=write_rows(tmp_path / "two-turns.parquet", talks))
    rows = open_rows(prepare(job, encoder)).train
    batch = make_batch([np.arange(len(rows.lengths))], rows, encoder.pad_id, flat=False)
    starts = np.cumsum([0, *rows.lengths])[:-1]
    assert (batch.position_ids[0, starts] == 0).all()
    assert (batch.targets[0, starts[1:] - 1] == IGNORED).all()
    ends = batch.input_ids[0, np.cumsum(rows.lengths) - 1]
    assert (batch.targets[0, np.cumsum(rows.lengths) - 2] == ends).all()
    assert int((batch.targets != IGNORED).sum()) == rows.supervised.sum()
