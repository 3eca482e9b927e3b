"""Trains one of the miniature's two models: `python -m recipes.miniature.pretrain small`.

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

from recipes.miniature.corpus import MIXES, Mix, document
from recipes.miniature.tokens import build_tokenizer

ROW_TOKENS = 256
ROWS_PER_STEP = 16
IGNORED = -100
PEAK_LEARNING_RATES = {"small": 4e-3, "large": 2.5e-3}


@dataclass(frozen=True)
class Shape:
    """Size of a model; both have a head size that vLLM serves (32 or 64)."""

    width: int
    feed_forward_width: int
    layers: int
    heads: int


SHAPES = {
    "small": Shape(width=96, feed_forward_width=192, layers=4, heads=3),
    "large": Shape(width=224, feed_forward_width=672, layers=5, heads=7),
}


def build_model(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A fresh Llama of that shape."""
    special: dict[str, Any] = {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=shape.feed_forward_width,
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


def batches(seed: int, mix: Mix, tokenizer: PreTrainedTokenizerFast) -> Iterator[dict[str, torch.Tensor]]:
    """Packed batches without end: `input_ids`, `labels`, `position_ids`, each int64 (ROWS_PER_STEP, ROW_TOKENS).

    Positions restart with each document.
    """
    rng = random.Random(seed)
    while True:
        rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
        for _ in range(ROWS_PER_STEP):
            row: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
            while len(row["input_ids"]) < ROW_TOKENS:
                ids, labels = encode(document(rng, mix), tokenizer)
                row["input_ids"] += ids
                row["labels"] += labels
                row["position_ids"] += range(len(ids))
            for key, values in row.items():
                rows[key].append(values[:ROW_TOKENS])
        yield {key: torch.tensor(values) for key, values in rows.items()}


def causal_within_documents(positions: torch.Tensor) -> torch.Tensor:
    """Which token sees which, bool (rows, 1, tokens, tokens): those before it in its own document, which begins at position 0."""
    documents = (positions == 0).cumsum(-1)
    same = documents[:, :, None] == documents[:, None, :]
    return (same & torch.ones(same.shape[1:], dtype=torch.bool).tril())[:, None]


def optimizers(model: LlamaForCausalLM, peak: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms.

    Source: Muon, https://kellerjordan.github.io/posts/muon/; its step scaled to AdamW's as in arXiv 2502.16982.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=peak, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=peak, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def learning_rate(step: int, steps: int, peak: float, annealing: float = 0.4) -> float:
    """Warm-up over 200 steps (or a twentieth of them all), constant, then linear to 2 % over the last share `annealing` of the steps."""
    decay = min(1.0, (steps - step) / (annealing * steps))
    return peak * min(1.0, (step + 1) / min(200, steps / 20)) * max(0.02, decay)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights (bf16 safetensors), tokenizer and chat template as a Hugging Face folder."""
    half: Any = LlamaForCausalLM(model.config).bfloat16()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(name: str, steps: int, start: Path | None, folder: Path) -> None:
    """Train one model and write it with its log to `folder`.

    Args:
        name: `small` or `large`.
        steps: Optimizer steps.
        start: Weights to anneal: the rate falls from the first step on, and the documents are others. None: from scratch.
        folder: Where the model goes.
    """
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = LlamaForCausalLM.from_pretrained(start, dtype="float32") if start else build_model(SHAPES[name], tokenizer)
    annealing, data_seed = (1.0, 2) if start else (0.4, 1)
    steppers = optimizers(model, PEAK_LEARNING_RATES[name])
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (folder / ("anneal.jsonl" if start else "pretrain.jsonl")).open("w") as log:
        for step, batch in zip(range(steps), batches(data_seed, MIXES[name], tokenizer), strict=False):
            rate = learning_rate(step, steps, PEAK_LEARNING_RATES[name], annealing)
            loss = train_step(model, steppers, batch, rate)
            if (step + 1) % 50 == 0:
                seconds = time.monotonic() - started
                log.write(json.dumps({"step": step + 1, "loss": round(loss, 4), "seconds": round(seconds, 1)}) + "\n")
                log.flush()
            if (step + 1) % 500 == 0:
                save(model, tokenizer, folder)
    save(model, tokenizer, folder)


def train_step(
    model: LlamaForCausalLM, steppers: list[torch.optim.Optimizer], batch: dict[str, torch.Tensor], rate: float
) -> float:
    """One step on one batch; its loss."""
    for stepper in steppers:
        stepper.zero_grad()
        for group in stepper.param_groups:
            group["lr"] = rate
    mask = causal_within_documents(batch["position_ids"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss: torch.Tensor = model(**batch, attention_mask=mask, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for stepper in steppers:
        stepper.step()
    return loss.item()


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(SHAPES))
    parser.add_argument("--steps", type=int, default=6000, help=f"steps of {ROWS_PER_STEP * ROW_TOKENS} tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--anneal", type=Path, metavar="FOLDER", help="start from these weights and let the rate fall")
    parser.add_argument("--out", type=Path, default=Path("recipes/miniature/models"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.model, arguments.steps, arguments.anneal, arguments.out / arguments.model)


if __name__ == "__main__":
    main()
