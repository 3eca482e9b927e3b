import numpy as np
import pytest

from generation.errors import NotSealedError, TrainingError
from tests.training.build_job import conversations, make_job, write_dataset, write_model, write_rows
from training.chat import load_encoder
from training.data import IGNORED, make_batch, open_rows
from training.prepare import prepare


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(str(write_model(tmp_path_factory.mktemp("model"))))


def rows_of(job, encoder):
    return open_rows(prepare(job, encoder, 0, 1))


def test_rows_are_the_dataset_and_then_the_human_examples_as_often_as_asked(tmp_path, encoder):
    human = write_rows(tmp_path / "human" / "seeds.parquet", conversations(3, 9))
    job = make_job(tmp_path / "job", tmp_path, write_dataset(tmp_path / "dataset", (5, 4)), human, seed_repeats=2)
    rows = rows_of(job, encoder)
    wanted = conversations(5, 0) + conversations(4, 1) + conversations(3, 9) * 2
    assert [rows.tokens(index).tolist() for index in range(len(rows.lengths))] == [
        row.input_ids for row in encoder.encode(wanted)
    ]


def test_rows_above_max_tokens_are_left_out_and_counted(tmp_path, encoder):
    job = make_job(tmp_path / "job", tmp_path, write_dataset(tmp_path / "dataset", (50,)), None, max_tokens=30)
    file = prepare(job, encoder, 0, 1)[0]
    assert file.rows + file.too_long == 50
    assert 0 < file.too_long < 50
    assert rows_of(job, encoder).lengths.max() <= 30


def test_a_dataset_of_which_nothing_is_left_is_refused(tmp_path, encoder):
    job = make_job(tmp_path / "job", tmp_path, write_dataset(tmp_path / "dataset"), None, max_tokens=3)
    with pytest.raises(TrainingError, match=r"65 were longer than training.max_tokens = 3"):
        prepare(job, encoder, 0, 1)


def test_a_dataset_that_is_not_sealed_is_refused(tmp_path, encoder):
    with pytest.raises(NotSealedError):
        prepare(make_job(tmp_path / "job", tmp_path, str(tmp_path), None), encoder, 0, 1)


def test_ranks_prepare_different_files_and_a_second_job_finds_them(tmp_path, encoder):
    job = make_job(tmp_path / "job", tmp_path, write_dataset(tmp_path / "dataset"), None)
    prepare(job, encoder, 0, 1)
    files = sorted((tmp_path / "job" / "checkpoints" / "tokens").iterdir())
    times = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 4
    assert [file.rows for file in prepare(job, encoder, 1, 2)] == [40, 25]
    assert [file.stat().st_mtime_ns for file in files] == times


def test_a_batch_restarts_positions_and_never_predicts_across_documents(tmp_path, encoder):
    job = make_job(tmp_path / "job", tmp_path, write_dataset(tmp_path / "dataset"), None)
    rows = rows_of(job, encoder)
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
