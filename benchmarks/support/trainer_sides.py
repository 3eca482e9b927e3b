"""One rank of one side of `benchmarks.training`: our loop, Hugging Face `Trainer` or TRL's `SFTTrainer`, on the same token rows.

`python -m benchmarks.support.trainer_sides SIDE FOLDER STEPS`, on every rank. It writes `FOLDER/SIDE-RANK.json`: the time at which each
optimizer step ended, and the real tokens that this rank has put into it.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch

from training.chat import load_encoder
from training.config import REDUCE_BUCKET
from training.data import IGNORED
from training.engine import deepspeed_config
from training.feed import Feed
from training.job import TrainingJob
from training.prepare import prepare
from training.start import start_training
from training.step import run_step
from training.token_rows import TokenRows, open_rows

PADDED_ROWS = 8
"""Rows of a rank's padded batch; packed rows hold as many tokens on average."""


class Clock:
    """When steps ended, and the tokens in them."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.tokens: list[int] = []

    def step_ended(self) -> None:
        """The optimizer step is done on this rank."""
        self.ends.append(time.monotonic())

    def counted(self, batch: Any) -> Any:
        """Note the real tokens of a batch that was just collated; batches are used in this order."""
        mask = batch.get("attention_mask")
        self.tokens.append(int(batch["input_ids"].numel() if mask is None else mask.sum()))
        return batch


def ours(job: TrainingJob, steps: int, clock: Clock) -> None:
    """The loop as users run it, without what happens before and after its steps."""
    training = start_training(job)
    with Feed(training) as feed:
        for step in range(steps):
            line, _ = run_step(training, feed, step)
            clock.tokens.append(line.tokens // training.ranks.world)
            clock.step_ended()


def hf_trainer(job: TrainingJob, steps: int, clock: Clock) -> None:
    """`Trainer` with padded batches."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    arguments = TrainingArguments(per_device_train_batch_size=PADDED_ROWS, **_arguments(job, steps))
    tokenizer = load_encoder(job.model).tokenizer
    pad = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
    trainer = Trainer(
        model=_model(job),
        args=arguments,
        train_dataset=_dataset(job),
        data_collator=lambda rows: clock.counted(pad(rows)),
        callbacks=[_callback(clock)],
    )
    trainer.train()


def trl(job: TrainingJob, steps: int, clock: Clock) -> None:
    """`SFTTrainer` with best-fit packing; ends with an error where its packed documents see one another."""
    library: Any = import_module("trl")  # only where the extra `peers` is installed
    arguments = library.SFTConfig(
        per_device_train_batch_size=1,
        packing=True,
        packing_strategy="bfd",
        max_length=job.config.max_tokens,
        **_arguments(job, steps),
    )
    trainer = library.SFTTrainer(
        model=_model(job),
        args=arguments,
        train_dataset=_dataset(job),
        processing_class=load_encoder(job.model).tokenizer,
        callbacks=[_callback(clock)],
    )
    _expect_no_contamination(trainer)
    collate: Callable[[Any], Any] = trainer.data_collator
    trainer.data_collator = lambda rows: clock.counted(collate(rows))
    trainer.train()


SIDES = {"psi": ours, "hf_trainer": hf_trainer, "trl": trl}


def _model(job: TrainingJob) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32, attn_implementation="sdpa")


def _arguments(job: TrainingJob, steps: int) -> dict[str, Any]:
    """What both trainers are told: our optimizer, our DeepSpeed settings, and nothing beside training."""
    settings = deepspeed_config(job.config, 2, REDUCE_BUCKET)
    theirs = {key: settings[key] for key in ("zero_optimization", "bf16", "gradient_clipping")}
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return {
        "output_dir": job.output,
        "max_steps": steps,
        "learning_rate": job.config.learning_rate,
        "adam_beta2": 0.95,
        "lr_scheduler_type": "constant",
        "max_grad_norm": job.config.clip_norm,
        "deepspeed": theirs | dict.fromkeys(sizes, "auto") | {"zero_force_ds_cpu_optimizer": False},
        "use_cpu": True,
        "bf16": False,
        "optim": "adamw_torch_fused",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "gradient_checkpointing": False,
        "seed": job.seed,
    }


def _dataset(job: TrainingJob) -> Any:
    import datasets

    rows = _rows(job)
    ids = [rows.tokens(row).tolist() for row in range(len(rows.lengths))]
    prompts = (rows.lengths - rows.supervised).tolist()
    labels = [[IGNORED] * prompt + one[prompt:] for prompt, one in zip(prompts, ids, strict=True)]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels})


def _rows(job: TrainingJob) -> TokenRows:
    return open_rows(prepare(job, load_encoder(job.model))).train


def _callback(clock: Clock) -> Any:
    from transformers import TrainerCallback

    class Ended(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step_ended()

    return Ended()


def _expect_no_contamination(trainer: Any) -> None:
    """The loss of a packed row must be that of its documents, each computed alone."""
    packed = next(row for row in trainer.train_dataset if len(row["seq_lengths"]) > 1)
    documents: list[dict[str, Any]] = []
    start = 0
    for length in packed["seq_lengths"]:
        part = slice(start, start + length)
        documents.append(
            {"input_ids": packed["input_ids"][part], "labels": packed["labels"][part], "seq_lengths": [length]}
        )
        start += length
    together = _summed_loss(trainer, [packed])
    alone = sum(_summed_loss(trainer, [document]) for document in documents)
    if abs(together - alone) > 1e-4 * abs(alone):
        raise SystemExit(f"trl: packed documents see one another: their loss is {together}, and {alone} one by one")


def _summed_loss(trainer: Any, rows: Sequence[Any]) -> float:
    batch = trainer.data_collator(rows)
    with torch.no_grad():
        mean = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(1))
    return float(mean)


def main() -> None:
    """Run this rank's part."""
    side, folder, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    os.sched_setaffinity(0, {int(os.environ["RANK"]) % (os.cpu_count() or 1)})
    # As in our engine no collective is compiled, so all sides communicate by gloo.
    cast(Any, import_module("deepspeed")).ops.__compatible_ops__ = {}
    clock = Clock()
    SIDES[side](TrainingJob.from_json((folder / "job.json").read_text()), steps, clock)
    facts = {"ends": clock.ends, "tokens": clock.tokens[:steps]}
    (folder / f"{side}-{os.environ['RANK']}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
