"""Training on a run folder in a bucket, whose disk goes with its node."""

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import LlamaForCausalLM

from cluster.model_copy import copy_model
from generation.errors import StorageError
from generation.large_files import download, upload
from generation.storage import Store, json_bytes
from tests.bucket.proxy import Proxy, every
from tests.bucket.server import BUCKET
from tests.training.build_job import free_port, make_job, run_ranks, start_ranks, write_inputs, write_model
from training.chat import load_encoder
from training.checkpoint import MARKER, complete_checkpoints, sha256_of, write_marker
from training.checkpoint_copies import fetch_copy, send_copy
from training.config import TrainingConfig
from training.export import publish, send_model
from training.job import LINEAGE, UNCHECKED, TrainingJob
from training.metrics import read_metrics
from training.ranks import Ranks, join_ranks

MEGABYTE = 1_000_000


def save(job: TrainingJob, step: int) -> Path:
    """A checkpoint as `save_checkpoint` leaves it, without an engine: two newest ones stay."""
    folder = Path(job.checkpoints)
    target = folder / f"step-{step:08d}"
    (target / "zero").mkdir(parents=True)
    (target / "zero/state.pt").write_bytes(os.urandom(1000))
    (target / "model.pt").write_bytes(f"weights of {step}".encode())
    files = {str(path.relative_to(target)): sha256_of(path) for path in target.rglob("*.pt")}
    write_marker(target, {"step": step, "files": files})
    for old in complete_checkpoints(folder)[:-2]:
        shutil.rmtree(old)
    Path(job.metrics).write_text("".join(json.dumps({"step": done}) + "\n" for done in range(1, step + 1)))
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def job(tmp_path: Path, uri: str) -> TrainingJob:
    copied = {"checkpoints": str(tmp_path / "a/checkpoints"), "metrics": str(tmp_path / "a/checkpoints/training.jsonl")}
    job = make_job(tmp_path / "a", tmp_path, "", None)
    return replace(job, **copied, checkpoint_copies=Store(uri).uri_of("checkpoints/psi"))


def on_another_disk(job: TrainingJob, folder: Path) -> TrainingJob:
    folder.mkdir(parents=True)
    return replace(job, checkpoints=str(folder), metrics=str(folder / "training.jsonl"))


def test_a_large_file_comes_and_goes_whole_through_faults(proxy: Proxy, uri: str, tmp_path: Path):
    (tmp_path / "large").write_bytes(os.urandom(12 * MEGABYTE))
    (tmp_path / "empty").write_bytes(b"")
    files, store = {name: tmp_path / name for name in ("large", "empty")}, Store(uri)
    proxy.draw = every(0.2, seed=1)
    upload(store, files)
    download(store, {name: tmp_path / "back" / name for name in files})
    assert contents(tmp_path / "back") == {name: path.read_bytes() for name, path in files.items()}
    with pytest.raises(StorageError, match=r"absent\?.*: cannot read"):
        download(store, {"absent": tmp_path / "absent"})


def test_a_job_on_another_disk_goes_on_from_the_newest_copy_and_old_copies_are_deleted(
    job: TrainingJob, tmp_path: Path
):
    ranks = join_ranks(TrainingConfig())
    for step in (10, 20, 30):
        save(job, step)
        send_copy(job, ranks)
    store = Store(job.checkpoint_copies or "")
    assert [path for path in store.tree() if path.endswith(MARKER)] == [
        f"step-000000{step}/{MARKER}" for step in (20, 30)
    ]
    assert not [path for path in store.tree() if path.startswith("step-00000010")]
    elsewhere = on_another_disk(job, tmp_path / "b")
    fetch_copy(elsewhere, ranks)
    assert contents(Path(elsewhere.checkpoints)) == contents(Path(job.checkpoints))
    assert len(read_metrics(Path(elsewhere.metrics))) == 30
    save(elsewhere, 40)
    fetch_copy(elsewhere, ranks)
    assert [path.name for path in complete_checkpoints(Path(elsewhere.checkpoints))] == [
        "step-00000030",
        "step-00000040",
    ]


def test_nothing_of_a_checkpoint_that_was_set_aside_is_left_in_its_copy(job: TrainingJob):
    ranks = join_ranks(TrainingConfig())
    target = save(job, 10)
    whole = contents(target)
    send_copy(job, ranks)
    (target / "model.pt").write_bytes(b"damaged")
    (target / MARKER).rename(target / "DAMAGED.json")
    fetch_copy(job, ranks)
    assert contents(target) == whole


def test_no_rank_waits_in_a_collective_for_as_long_as_the_model_takes_to_be_sent(
    job: TrainingJob, uri: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    met, gather, held = threading.Semaphore(0), Ranks.gather, list[bool]()
    ranks, folder, output = join_ranks(TrainingConfig()), write_model(tmp_path / "model"), Store(uri).child("model")

    def note(ranks: Ranks, value: object) -> list[object]:
        met.release()
        return gather(ranks, value)

    def hold_the_first_until_the_ranks_have_met_twice() -> None:
        if not held:
            held.append(False)
            while met.acquire(blocking=False):
                pass
            held[0] = all(met.acquire(timeout=20) for _ in range(2))

    monkeypatch.setattr(Ranks, "gather", note)
    proxy.draw = hold_the_first_until_the_ranks_have_met_twice
    Path(job.checkpoints).mkdir(parents=True)
    whole = SimpleNamespace(model=LlamaForCausalLM.from_pretrained(folder))
    engine = SimpleNamespace(module=whole, zero_optimization_stage=lambda: 0)
    publish(
        engine,
        replace(job, model=str(folder), output=output.uri),
        load_encoder(str(folder)),
        ranks,
        {"name": "planted"},
    )
    assert held == [True]
    assert output.read_json(LINEAGE)["name"] == "planted"
    assert [asked.path for asked in proxy.asked if asked.kind == "PUT"][-1].endswith(LINEAGE)


def test_a_copy_that_fails_is_said_and_is_none_and_the_next_one_is_made(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    ranks = join_ranks(TrainingConfig())
    save(job, 10)
    with monkeypatch.context() as patch:
        patch.setattr(
            "training.checkpoint_copies.Store", lambda uri: Store(uri.replace(f"//{BUCKET}/", "//elsewhere/"))
        )
        send_copy(job, ranks)
    assert "step-00000010: not copied to s3://" in capsys.readouterr().err
    save(job, 20)
    send_copy(job, ranks)
    assert [path for path in Store(job.checkpoint_copies or "").tree() if path.endswith(MARKER)] == [
        f"step-00000020/{MARKER}"
    ]


def test_a_node_has_one_copy_of_a_model_until_another_is_published(uri: str, proxy: Proxy, tmp_path: Path):
    store, folder = Store(uri), tmp_path / "copy"

    def publish_weights(weights: bytes) -> None:
        made = tmp_path / f"made-{weights.decode()}"
        made.mkdir()
        (made / "model.safetensors").write_bytes(weights)
        hashes = {"model.safetensors": sha256_of(made / "model.safetensors")}
        (made / UNCHECKED).write_bytes(json_bytes({"files": hashes}))
        send_model(made, store, made / UNCHECKED)
        assert not made.exists()

    publish_weights(b"one")
    copy_model(store, folder)
    assert contents(folder)["model.safetensors"] == b"one"
    store.write_new(LINEAGE, store.read(UNCHECKED))
    store.delete(UNCHECKED)
    proxy.asked.clear()
    copy_model(store, folder)
    assert not [asked for asked in proxy.asked if "safetensors" in asked.path]
    store.delete(LINEAGE)
    publish_weights(b"two")
    copy_model(store, folder)
    assert contents(folder)["model.safetensors"] == b"two"
    store.delete(UNCHECKED)
    store.write_new(UNCHECKED, json_bytes({"files": {"model.safetensors": "0" * 64}}))
    with pytest.raises(StorageError, match=r"not the files that were published .*: model\.safetensors"):
        copy_model(store, folder)


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on_on_a_node_that_has_nothing_of_it(tmp_path: Path, uri: str, proxy: Proxy):
    inputs, settings = write_inputs(tmp_path / "inputs"), {"max_steps": 12, "epochs": 4, "checkpoint_every_steps": 4}
    whole = make_job(tmp_path / "whole", *inputs, rows_per_step=5, **settings)
    expected = run_ranks(whole, 1)
    run = Store(uri)
    job = make_job(tmp_path / "first", *inputs, rows_per_step=5, **settings)
    job = replace(job, output=run.uri_of("models/round-0"), checkpoint_copies=run.uri_of("checkpoints/psi"))
    (rank,) = start_ranks(job, 1, free_port())
    copies, until = Store(job.checkpoint_copies or ""), time.monotonic() + 300
    while f"step-00000004/{MARKER}" not in copies.tree() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(rank.pid, signal.SIGKILL)
    rank.wait()
    assert not job.is_exported, "killed too late"
    second = make_job(tmp_path / "second", *inputs, rows_per_step=5, **settings)
    second = replace(second, output=job.output, checkpoint_copies=job.checkpoint_copies)
    found = run_ranks(second, 1)
    assert [(line["step"], line["loss"]) for line in found] == [(line["step"], line["loss"]) for line in expected]
    assert [line["step"] for line in read_metrics(Path(second.checkpoints) / "starts.jsonl")][-1] >= 4
    copy_model(run.child("models/round-0"), tmp_path / "copy")
    assert (tmp_path / "copy/model.safetensors").read_bytes() == (Path(whole.output) / "model.safetensors").read_bytes()
