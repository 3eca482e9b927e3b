import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from generation.errors import NotSealedError, TrainingError
from tests.training.build_job import ROOT, conversations, make_job, write_dataset, write_model, write_rows
from training import prepare as preparing
from training.chat import load_encoder
from training.prepare import TOKEN_SCHEMA, prepare, token_path
from training.sources import find_sources
from training.token_rows import open_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def encoder(model):
    return load_encoder(str(model))


@pytest.fixture
def job(tmp_path, model):
    return make_job(tmp_path / "job", model, write_dataset(tmp_path / "dataset"), None)


def times(job):
    return {path.name: path.stat().st_mtime_ns for path in Path(job.tokens).iterdir()}


def configured(job, **settings):
    return replace(job, config=job.config.model_copy(update=settings))


def test_token_files_are_uncompressed_arrow_of_tokens_and_loss_spans(job, encoder):
    file = prepare(job, encoder)[0]
    table = pa.ipc.open_file(pa.memory_map(str(file.path))).read_all()
    assert table.schema == TOKEN_SCHEMA
    row = encoder.encode(conversations(40, 0))[7]
    assert table.column("input_ids")[7].as_py() == row.input_ids
    assert table.column("loss_spans")[7].as_py() == [{"start": s, "end": e} for s, e in row.loss_spans]
    buffers = [buffer for chunk in table.column("input_ids").chunks for buffer in chunk.buffers() if buffer]
    assert all(not buffer.is_mutable for buffer in buffers)
    assert pa.total_allocated_bytes() < table.nbytes  # mapped, not read


def test_the_largest_token_of_a_file_is_known_without_reading_it(job, encoder):
    file = prepare(job, encoder)[0]
    assert file.largest_token == max(token for row in encoder.encode(conversations(40, 0)) for token in row.input_ids)


def test_a_second_job_with_the_same_rows_finds_them_and_prepares_nothing(job, encoder, tmp_path):
    prepare(job, encoder)
    before = times(job)
    assert len(before) == 4
    again = replace(job, dataset=write_dataset(tmp_path / "copy"), seed=5)
    assert [file.rows for file in prepare(again, encoder, 1, 2)] == [40, 25]
    assert times(job) == before


@pytest.mark.parametrize(
    "change", [{"max_tokens": 63}, {"loss_on": "all"}, {"overlong": "truncate"}, {"seed": 1}, {"epochs": 1.0}]
)
def test_a_token_file_has_another_name_when_its_content_might_differ_and_only_then(job, encoder, change):
    source, folder = find_sources(job)[0], Path(job.tokens)
    config = job.config if "seed" in change else job.config.model_copy(update=change)
    same = token_path(source, folder, encoder, config) == token_path(source, folder, encoder, job.config)
    assert same == bool({"seed", "epochs"} & set(change))
    assert token_path(replace(source, sha256="0"), folder, encoder, config) != token_path(
        source, folder, encoder, config
    )
    template = replace(encoder, digest="another template")
    assert token_path(source, folder, template, config) != token_path(source, folder, encoder, config)


def test_rows_above_max_tokens_are_left_out_and_counted(job, encoder):
    files = prepare(configured(job, max_tokens=30), encoder)
    assert [file.rows + file.too_long for file in files] == [40, 25]
    assert all(0 < file.too_long < file.rows for file in files)
    assert open_rows(files).train.lengths.max() <= 30


def test_rows_above_max_tokens_are_cut_and_counted_where_the_recipe_says_so(job, encoder):
    files = prepare(configured(job, max_tokens=30, overlong="truncate"), encoder)
    rows = open_rows(files).train
    assert sum(file.rows + file.unsupervised for file in files) == 65
    assert all(file.too_long > 0 for file in files)
    assert rows.lengths.max() == 30
    whole = encoder.encode(conversations(40, 0))[next(row for row in range(40) if rows.lengths[row] == 30)]
    assert whole.input_ids[:30] in [rows.tokens(row).tolist() for row in range(40)]
    assert all(end <= rows.lengths[row] for row in range(40) for _, end in rows.loss_spans(row))


def test_rows_above_max_tokens_are_an_error_where_the_recipe_says_so(job, encoder):
    with pytest.raises(TrainingError, match=r"train-00000.parquet: a row of \d+ tokens, training.max_tokens = 30"):
        prepare(configured(job, max_tokens=30, overlong="error"), encoder)


def test_rows_with_nothing_to_supervise_are_left_out_and_counted(job, encoder, tmp_path):
    talks = conversations(5, 9)
    talks[3] = talks[3][:1]
    file = prepare(replace(job, human=write_rows(tmp_path / "human.parquet", talks)), encoder)[2]
    assert (file.rows, file.unsupervised, file.source) == (4, 1, "human")


def test_no_supervised_token_in_all_rows_is_an_error(job, encoder, tmp_path):
    lonely = write_dataset(tmp_path / "lonely", (6,), [talk[:1] for talk in conversations(6, 0)])
    with pytest.raises(TrainingError, match="in 6 nothing is supervised"):
        prepare(replace(job, dataset=lonely), encoder)


def test_a_dataset_of_which_nothing_is_left_is_refused(job, encoder):
    with pytest.raises(TrainingError, match=r"65 were longer than training.max_tokens = 3"):
        prepare(configured(job, max_tokens=3), encoder)


def test_a_dataset_that_is_not_sealed_is_refused(job, encoder, tmp_path):
    with pytest.raises(NotSealedError):
        prepare(replace(job, dataset=str(tmp_path)), encoder)


def test_a_file_without_messages_is_refused_by_name(job, encoder, tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    with pytest.raises(TrainingError, match=r"text.parquet: no column `messages`; columns: \['text'\]"):
        prepare(replace(job, human=str(tmp_path / "text.parquet")), encoder)


def test_ranks_prepare_different_files_and_each_waits_for_all(job, encoder):
    made: dict[int, list] = {}
    ranks = [
        threading.Thread(target=lambda rank=rank: made.update({rank: prepare(job, encoder, rank, 2)}))
        for rank in (0, 1)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert made[0] == made[1]
    assert len(times(job)) == 4


def test_a_rank_makes_the_files_of_one_that_gives_no_sign_of_life(job, encoder, monkeypatch):
    monkeypatch.setattr(preparing, "_PATIENCE_SECONDS", 0.2)
    Path(job.tokens).mkdir(parents=True)
    (Path(job.tokens) / "half.tmp").write_text("what a killed rank left")
    assert [file.rows for file in prepare(job, encoder, 1, 2)] == [40, 25]


def test_a_job_is_prepared_alone_by_one_command(job, tmp_path):
    (tmp_path / "job.json").write_text(job.to_json())
    command = [sys.executable, "-m", "training.prepare", str(tmp_path / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert [line.partition(": ")[2] for line in done.stdout.splitlines()] == [
        f"{rows} rows, 0 too long, 0 unsupervised" for rows in (40, 25)
    ]
    (tmp_path / "job.json").write_text(replace(job, dataset=str(tmp_path)).to_json())
    failed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (failed.returncode, failed.stdout) == (NotSealedError.exit_code, "")
    assert "no SEALED.json" in failed.stderr


def test_ranks_without_a_cluster_prepare_before_there_is_a_process_group(job, tmp_path):
    (tmp_path / "job.json").write_text(job.to_json())
    program = f"""
from pathlib import Path
from torch import distributed
from training import start
from training.job import TrainingJob
prepare = start.prepare
def watched(job, encoder, rank, world):
    files = prepare(job, encoder, rank, world)
    print(rank, world, distributed.is_initialized(), [file.rows for file in files])
    raise SystemExit
start.prepare = watched
start.start_training(TrainingJob.from_json(Path({str(tmp_path / "job.json")!r}).read_text()))
"""
    env = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=env, check=True
    )
    assert done.stdout == "0 1 False [40, 25]\n"
