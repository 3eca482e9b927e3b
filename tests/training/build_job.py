"""A tiny model, dataset and job to train in tests."""

import hashlib
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from recipes.miniature.tokens import build_tokenizer
from training.config import TrainingConfig
from training.job import TrainingJob
from training.metrics import read_metrics

ROOT = Path(__file__).parent.parent.parent


def write_model(folder: Path, *, tied: bool = True) -> Path:
    set_seed(0)
    tokenizer = build_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), **shape, **ids, tie_word_embeddings=tied, initializer_range=0.2)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def conversations(count: int, seed: int) -> list[list[dict[str, str]]]:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdef", k=rng.randint(1, 20))) for _ in range(count)]
    return [[{"role": "user", "content": word}, {"role": "assistant", "content": word[::-1]}] for word in words]


def write_rows(path: Path, rows: list[list[dict[str, str]]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"messages": rows}), path)
    return str(path)


def write_dataset(folder: Path, counts: tuple[int, ...] = (40, 25), rows: list | None = None) -> str:
    files = []
    for index, count in enumerate(counts):
        path = Path(write_rows(folder / f"train-{index:05d}.parquet", rows or conversations(count, index)))
        content = path.read_bytes()
        files.append({"name": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    (folder / "SEALED.json").write_text(json.dumps({"files": files, "rows": sum(counts), "digest": str(counts)}))
    return str(folder)


def write_inputs(folder: Path) -> tuple[Path, str, str]:
    """Model, dataset and human examples."""
    human = write_rows(folder / "human" / "seeds.parquet", conversations(6, 99))
    return write_model(folder / "model"), write_dataset(folder / "dataset"), human


def make_job(
    folder: Path, model: Path, dataset: str, human: str | None, held_out: str | None = None, **settings: object
) -> TrainingJob:
    values = {"max_tokens": 64, "learning_rate": 1e-2, "precision": "float32", "warmup_steps": 2, "seed_repeats": 2}
    config = TrainingConfig.model_validate({**values, **settings})
    places = {name: str(folder / name) for name in ("output", "tokens", "checkpoints", "metrics")}
    inputs = {"model": str(model), "dataset": dataset, "human": human, "held_out": held_out}
    return TrainingJob(**inputs, **places, config=config, seed=7, name=folder.name)


def start_ranks(job: TrainingJob, world: int, port: int) -> list[subprocess.Popen[bytes]]:
    file = Path(job.checkpoints).parent / "job.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(job.to_json())
    fixed = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # No compiler on the path: training on CPU must not need one.
    fixed = {**fixed, "OMP_NUM_THREADS": "1", "PATH": "", "CXX": "/nowhere", "CC": "/nowhere"}
    command = [sys.executable, "-m", "training.loop", str(file)]
    envs = [{**fixed, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    with (file.parent / "output.log").open("wb") as log:
        return [subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log) for env in envs]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_ranks(job: TrainingJob, world: int) -> list[dict[str, float]]:
    """Train a job on some ranks, and return its metrics."""
    ranks = start_ranks(job, world, free_port())
    codes = [rank.wait(timeout=500) for rank in ranks]
    assert codes == [0] * world, (Path(job.checkpoints).parent / "output.log").read_text()[-3000:]
    return read_metrics(Path(job.metrics))
