"""Publishes the trained model as a Hugging Face folder: written aside, reloaded, and only then given its final name."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from generation.errors import StorageError, TrainingError
from generation.large_files import upload
from generation.storage import Store
from training.chat import ChatEncoder
from training.checkpoint import flush_folder, sha256_of
from training.job import LINEAGE, UNCHECKED, TrainingJob
from training.lora import merged_weights
from training.ranks import Ranks


def publish(engine: Any, job: TrainingJob, encoder: ChatEncoder, ranks: Ranks, lineage: dict[str, Any]) -> None:
    """Gather the weights of all ranks in bfloat16 and publish them with tokenizer, template and lineage. All ranks must call it.

    Args:
        engine: The trained engine.
        job: Names the model that it started from, and the folder to publish, which must not hold another model.
        encoder: Whose end tokens generation must stop at.
        ranks: Of this job.
        lineage: What the model was made from, as JSON; rank 0's counts.

    Raises:
        TrainingError: The folder exists, or what was written cannot be loaded again.
        StorageError: It cannot be written.
    """
    weights, config = gather_weights(engine, ranks), engine.module.model.config
    # Writing, reading again and sending take longer than a collective may.
    failure = ranks.side_by_side(lambda: _publish(config, weights, job, encoder, lineage) if ranks.leads else None)
    if failure:
        raise StorageError(f"{job.name}: the model cannot be published: {failure}")


def _publish(
    config: Any, weights: dict[str, torch.Tensor], job: TrainingJob, encoder: ChatEncoder, lineage: dict[str, Any]
) -> None:
    output = Store(job.output)
    target = output.local("") if output.is_local else Path(job.checkpoints) / "model"
    if output.is_local and target.exists():
        raise TrainingError(f"{target}: already there, and not a model of this job; move it away")
    aside = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    _write_model(config, weights, aside)
    _write_text_side(job.model, encoder, aside)
    _validate(aside, weights, encoder)
    last = aside / (UNCHECKED if job.checked_later else LINEAGE)
    _write_lineage(last, lineage)
    if output.is_local:
        aside.rename(target)
        flush_folder(target.parent)
    else:
        send_model(aside, output, last)


def gather_weights(engine: Any, ranks: Ranks) -> dict[str, torch.Tensor]:
    """All weights by their names in the Hugging Face model, adapters merged, bfloat16 on the CPU; on other ranks than 0 none.

    That is two bytes a parameter. All ranks must call it.
    """
    if engine.zero_optimization_stage() == 3:
        state = engine._zero3_consolidated_16bit_state_dict()
        weights = {name.removeprefix("model."): weight for name, weight in state.items()} if ranks.leads else {}
    else:
        weights = merged_weights(engine.module.model) if ranks.leads else {}
    return {name: weight.detach().to("cpu", torch.bfloat16) for name, weight in weights.items()}


def _write_model(config: Any, weights: dict[str, torch.Tensor], folder: Path) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.save_pretrained(folder, max_shard_size="5GB")


def _write_text_side(base: str, encoder: ChatEncoder, folder: Path) -> None:
    """Tokenizer, chat template, licence, and the tokens that end generation.

    Sampling defaults of the base model are not carried over: they were tuned for another model.
    """
    tokenizer = encoder.tokenizer
    tokenizer.save_pretrained(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    GenerationConfig(eos_token_id=list(encoder.eos_ids), **ids).save_pretrained(folder)
    for path in (*Path(base).glob("LICENSE*"), *Path(base).glob("NOTICE*")):
        shutil.copy(path, folder / path.name)


def send_model(folder: Path, output: Store, last: Path) -> None:
    """Put a model's files into a bucket, the one that says that it is whole last; what an attempt that died has left is overwritten."""
    upload(output, {path.name: path for path in folder.iterdir() if path != last})
    output.write_new(last.name, last.read_bytes())
    shutil.rmtree(folder)


def _write_lineage(path: Path, lineage: dict[str, Any]) -> None:
    """Where the model comes from, with the sha256 of all of its files; once this returns, everything is on disk."""
    files = {file.name: sha256_of(file) for file in sorted(path.parent.iterdir())}
    path.write_text(json.dumps({**lineage, "files": files}, indent=1))
    sha256_of(path)
    flush_folder(path.parent)


def _validate(folder: Path, weights: dict[str, torch.Tensor], encoder: ChatEncoder) -> None:
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, use_safetensors=True, local_files_only=True
        )
        template = AutoTokenizer.from_pretrained(folder, local_files_only=True).chat_template
    except (OSError, ValueError) as error:
        raise TrainingError(f"{folder}: the exported model cannot be loaded again: {error}") from error
    loaded = model.state_dict()
    wrong = [name for name, tensor in weights.items() if not torch.equal(loaded[name], tensor)]
    if wrong or not all(tensor.isfinite().all() for tensor in weights.values()):
        raise TrainingError(f"{folder}: weights changed on the way to disk or are not finite: {wrong[:5]}")
    if template != encoder.tokenizer.chat_template:
        raise TrainingError(f"{folder}: the chat template changed on the way to disk")
