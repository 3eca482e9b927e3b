"""Useful tokens a second of our training loop against Hugging Face `Trainer` and TRL's `SFTTrainer`, all on DeepSpeed, two ranks of one core.

The same model (a Llama of width 512), the same rows (log-normal lengths, mean 150 tokens, at most 1,000; half of each is supervised), the same
optimizer, ZeRO stage and number of optimizer steps. `Trainer` pads batches of 8 rows a rank, as its users do; TRL packs by best fit into rows of
as many tokens, after it was shown that its packed documents do not see one another (their loss is that of each alone); ours packs into
rows of the same size. A token counts where it is no padding.

Each turn is two processes of its own; sides take turns. The first steps of a turn warm up and do not count. Needs `pip install ".[cpu,peers]"`.
"""

import argparse
import json
import os
import socket
import statistics
import string
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.support.trainer_sides import PADDED_ROWS, SIDES
from training.config import TrainingConfig
from training.job import TrainingJob

_RANKS = 2
_MEAN, _SPREAD, _LONGEST = 150, 0.6, 1000
_WARM = 2
"""Steps of a turn that do not count."""
_BARS = {"vs_hf_trainer": 1.5, "vs_trl": 0.97}


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help=f"optimizer steps of a turn, {_WARM} of which warm up")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="psi among them")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    speeds: dict[str, list[float]] = {side: [] for side in options.sides}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, options.width, options.layers, rows=options.steps * _RANKS * PADDED_ROWS * 2)
        for _ in range(options.rounds):
            for side in options.sides:
                speeds[side].append(take_turn(folder, side, options.steps))
                print(f"{side}: {speeds[side][-1]:.0f} useful tokens/s", flush=True)
    print(json.dumps(_figures(speeds) | {"width": options.width, "layers": options.layers, "steps": options.steps}))


def write_inputs(folder: Path, width: int, layers: int, rows: int) -> None:
    """Model, sealed dataset and job."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    from recipes.miniature.tokens import build_tokenizer

    set_seed(0)
    tokenizer: Any = build_tokenizer()
    shape = {"hidden_size": width, "intermediate_size": width * 8 // 3, "num_hidden_layers": layers}
    heads = {"num_attention_heads": width // 64, "num_key_value_heads": max(1, width // 256)}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    # Head and body are as one to three, as in Qwen2.5-0.5B.
    LlamaForCausalLM(LlamaConfig(vocab_size=16 * width, **shape, **heads, **ids)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    dataset = folder / "dataset"
    dataset.mkdir()
    pq.write_table(pa.table({"messages": list(_conversations(rows))}), dataset / "train-00000.parquet")
    content = (dataset / "train-00000.parquet").read_bytes()
    files = [{"name": "train-00000.parquet", "bytes": len(content), "sha256": sha256(content).hexdigest()}]
    (dataset / "SEALED.json").write_text(json.dumps({"files": files, "rows": rows, "digest": "benchmark"}))
    (folder / "job.json").write_text(_job(folder).to_json())


def _job(folder: Path) -> TrainingJob:
    config = TrainingConfig(
        ranks=_RANKS,
        max_tokens=PADDED_ROWS * _MEAN,
        rows_per_step=_RANKS,
        epochs=10,
        learning_rate=1e-4,
        schedule="constant",
        warmup_steps=0,
        precision="float32",
        seed_repeats=0,
    )
    names = ("model", "dataset", "output", "tokens", "checkpoints", "metrics")
    places = {name: str(folder / name) for name in names}
    return TrainingJob(
        **places, human=None, held_out=None, config=config, seed=0, name="benchmark", checked_later=False
    )


def _conversations(rows: int) -> Iterator[list[dict[str, str]]]:
    """Each letter is one token."""
    rng = np.random.default_rng(0)
    drawn = rng.lognormal(np.log(_MEAN) - _SPREAD**2 / 2, _SPREAD, rows)
    for length in np.clip(drawn.round(), 16, _LONGEST - 4).astype(int).tolist():
        text = "".join(rng.choice(list(string.ascii_lowercase), length))
        yield [
            {"role": "user", "content": text[: length // 2]},
            {"role": "assistant", "content": text[length // 2 :]},
        ]


def take_turn(folder: Path, side: str, steps: int) -> float:
    """Useful tokens a second of both ranks, after the first steps."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(_RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    quiet = {"DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks.support.trainer_sides", side, str(folder), str(steps)]
    with (folder / f"{side}.log").open("wb") as log:
        ranks = [
            subprocess.Popen(
                command,
                env={**os.environ, **common, **quiet, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=log,
                stderr=log,
            )
            for rank in range(_RANKS)
        ]
        codes = [rank.wait() for rank in ranks]
    if any(codes):
        sys.exit(f"{side} failed:\n{(folder / f'{side}.log').read_text(errors='replace')[-3000:]}")
    facts = [json.loads((folder / f"{side}-{rank}.json").read_text()) for rank in range(_RANKS)]
    seconds = statistics.fmean(one["ends"][steps - 1] - one["ends"][_WARM - 1] for one in facts)
    return sum(sum(one["tokens"][_WARM:steps]) for one in facts) / seconds


def _figures(speeds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Ratios are medians over rounds of both sides of the same round."""
    names = {"hf_trainer": "vs_hf_trainer", "trl": "vs_trl"}
    ratios = {
        names[side]: round(statistics.median(a / b for a, b in zip(speeds["psi"], theirs, strict=True)), 3)
        for side, theirs in speeds.items()
        if side in names
    }
    return {
        "benchmark": "training",
        **ratios,
        "bars": _BARS,
        "useful_tokens_per_second": {side: [round(value) for value in values] for side, values in speeds.items()},
        "ratio": ratios.get("vs_hf_trainer"),
        "ratio_to": f"useful tokens/s of Hugging Face Trainer with DeepSpeed, padded batches of {PADDED_ROWS} rows a rank",
    }


if __name__ == "__main__":
    main()
