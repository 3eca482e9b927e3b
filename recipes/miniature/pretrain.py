"""Trains one of the miniature's two models from scratch: `python -m recipes.miniature.pretrain small`.

Everything follows from the seed, the number of steps and the number of threads; the log it writes is committed beside the weights.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.miniature.tokens import build_tokenizer
from recipes.miniature.world import document

ROW_TOKENS = 256
ROWS_PER_STEP = 16
IGNORED = -100


@dataclass(frozen=True)
class Shape:
    """Size of a model; both have a head size that vLLM serves (32 or 64)."""

    width: int
    layers: int
    heads: int


SHAPES = {"small": Shape(width=128, layers=4, heads=4), "large": Shape(width=192, layers=5, heads=6)}


def build_model(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A fresh Llama of that shape."""
    special: dict[str, Any] = {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=shape.width * 3,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            **special,
        )
    )


def _segments(asked: str) -> list[tuple[bool, str]]:
    r"""The user's text cut at the answers of its examples: `E:\\nab>ba\\nrule` supervises `ba` and the line end after it."""
    pieces: list[tuple[bool, str]] = []
    for line in asked.splitlines(keepends=True):
        question, arrow, answer = line.partition(">") if "|>" not in line else (line, "", "")
        pieces.append((False, question + arrow))
        if answer:
            pieces.append((True, answer))
    return pieces


def encode(turns: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Token ids of one conversation and its labels.

    What the assistant says is supervised, and in a list of examples also each answer: to predict the answers of the later examples
    from the earlier ones is to induce the rule, at several times the supervised tokens a document.
    """
    ids: list[int] = tokenizer.encode("<bos>", add_special_tokens=False)
    labels: list[int] = [IGNORED]
    for user, assistant in turns:
        for supervised, text in (*_segments(f"<|user|>{user}<|assistant|>"), (True, f"{assistant}<eos>")):
            piece = tokenizer.encode(text, add_special_tokens=False)
            ids += piece
            labels += piece if supervised else [IGNORED] * len(piece)
    return ids, labels


def batches(seed: int, large: bool, tokenizer: PreTrainedTokenizerFast) -> Iterator[dict[str, torch.Tensor]]:
    """Packed batches without end: `input_ids`, `labels`, `position_ids`, each int64 (ROWS_PER_STEP, ROW_TOKENS).

    Positions restart with each document, which is what keeps the documents of a row from seeing one another.
    """
    rng = random.Random(seed)
    while True:
        rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
        for _ in range(ROWS_PER_STEP):
            row: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
            while len(row["input_ids"]) < ROW_TOKENS:
                ids, labels = encode(document(rng, large), tokenizer)
                row["input_ids"] += ids
                row["labels"] += labels
                row["position_ids"] += range(len(ids))
            for key, values in row.items():
                rows[key].append(values[:ROW_TOKENS])
        yield {key: torch.tensor(values) for key, values in rows.items()}


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 200 steps, constant, then linear to 2 % over the last 40 % of the steps."""
    decay = min(1.0, (steps - step) / (0.4 * steps))
    return peak * min(1.0, (step + 1) / 200) * max(0.02, decay)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights (bf16 safetensors), tokenizer and chat template as a Hugging Face folder."""
    half: Any = LlamaForCausalLM(model.config).bfloat16()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(name: str, steps: int, threads: int, folder: Path) -> None:
    """Train one model and write it with its log to `folder`."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(SHAPES[name], tokenizer)
    peak = 2e-3 if name == "small" else 1.2e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (folder / "pretrain.jsonl").open("w") as log:
        for step, batch in zip(range(steps), batches(1, name == "large", tokenizer), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, peak)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(**batch, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if (step + 1) % 50 == 0:
                seconds = time.monotonic() - started
                line = {"step": step + 1, "loss": round(loss.item(), 4), "seconds": round(seconds, 1)}
                log.write(json.dumps(line) + "\n")
                log.flush()
            if (step + 1) % 1000 == 0:
                save(model, tokenizer, folder)
    save(model, tokenizer, folder)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(SHAPES))
    parser.add_argument("--steps", type=int, default=6000, help=f"steps of {ROWS_PER_STEP * ROW_TOKENS} tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("recipes/miniature/models"))
    arguments = parser.parse_args()
    train(arguments.model, arguments.steps, arguments.threads, arguments.out / arguments.model)


if __name__ == "__main__":
    main()
