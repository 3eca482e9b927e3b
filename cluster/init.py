"""`psi init`: a recipe folder for the user's own task, guessed from the user's own file."""

import importlib
import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import ValidationError

from cluster.guess import Guess, guess_task, read_columns
from generation.config import TASK_NAME, AnswerConfig, FieldsConfig, TaskConfig
from generation.engines.model_facts import context_tokens
from generation.errors import RecipeError
from generation.seeds import load_tasks
from generation.storage import digest, json_lines

DEFAULT_LARGE = "Qwen/Qwen2.5-7B-Instruct"
DEFAULT_SMALL = "Qwen/Qwen2.5-0.5B-Instruct"
MIN_ROWS_TO_SPLIT = 40
"""Fewer rows are all needed as examples."""
MAX_EVALUATION_ROWS = 200
COMPOSER = Path("recipes/miniature/compose.py")
CPU_KV_CACHE_BYTES = {"large": 2 << 30, "small": 1 << 30}


@dataclass(frozen=True, slots=True)
class InitRequest:
    """What the user asked for; None where it is to be guessed."""

    name: str
    seeds: Path
    evaluation: Path | None = None
    input_field: str | None = None
    output_field: str | None = None
    answer_kind: str | None = None
    large: str | None = None
    small: str | None = None
    directory: Path = Path()


def init_recipe(request: InitRequest) -> str:
    """Write the folder; returns what to tell the user.

    Raises:
        RecipeError: The folder exists, the columns cannot be guessed, or rows are wrong (SeedError).
    """
    folder = new_folder(request.directory, request.name)
    rows = read_columns(request.seeds)
    guess = guess_task(rows, request.input_field, request.output_field, request.answer_kind)
    _check(request, guess)
    used = [{column: row[column] for column in (guess.input_field, guess.output_field)} for row in rows]
    if request.evaluation:
        seeds, held_out = used, read_columns(request.evaluation)
        held_out = [{column: row[column] for column in (guess.input_field, guess.output_field)} for row in held_out]
    else:
        seeds, held_out = _hold_out(request.name, used)
    folder.mkdir(parents=True)
    try:
        (folder / "seeds.jsonl").write_bytes(json_lines(seeds))
        if held_out:
            (folder / "evaluation.jsonl").write_bytes(json_lines(held_out))
        text = _render(request, guess, len(seeds), len(held_out))
        (folder / "recipe.toml").write_text(text, encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder)
        raise
    return _farewell(folder, guess, len(seeds), len(held_out))


def new_folder(directory: Path, name: str) -> Path:
    """Where the folder of a new task goes; it is not made yet.

    Raises:
        RecipeError: The name is no task name, or something is there.
    """
    if not re.fullmatch(TASK_NAME, name):
        raise RecipeError(f"{name}: is no name for a task; use lower case letters, digits, - and _")
    folder = directory / name
    if folder.exists():
        raise RecipeError(f"{folder}: exists already; choose another name or remove it")
    return folder


def composed_recipe(name: str, rule: str, directory: Path) -> str:
    """Write the folder of a composition in the miniature's world; returns what to tell the user.

    Raises:
        RecipeError: The recipes are not at hand, the folder exists, or the rule is none.
    """
    root = Path(__file__).parents[1]
    if not (root / COMPOSER).is_file():
        raise RecipeError(
            f"--compose: {root / COMPOSER} is not there; it needs a checkout of PSI, not only the package"
        )
    if str(root) not in sys.path:
        sys.path.append(str(root))  # recipes are data, not an installed package
    return importlib.import_module(".".join(COMPOSER.with_suffix("").parts)).compose(name, rule, directory)


def _check(request: InitRequest, guess: Guess) -> None:
    """Every row must be usable as it is; the files are checked as a recipe's would be."""
    try:
        config = TaskConfig(
            name=request.name,
            description="not known yet",
            answer=AnswerConfig.model_validate({"kind": guess.answer_kind, "labels": guess.labels}),
            seeds=str(request.seeds),
            evaluation=str(request.evaluation) if request.evaluation else None,
            fields=FieldsConfig(
                input=guess.input_field, output=guess.output_field, answer_pattern=guess.answer_pattern
            ),
        )
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RecipeError(f"psi init {request.name}: {reasons}") from error
    load_tasks([config])


def _hold_out(name: str, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(seeds, evaluation rows), in file order: a quarter is held out, chosen by hash, where there are rows enough."""
    if len(rows) < MIN_ROWS_TO_SPLIT:
        return rows, []
    ranked = sorted(range(len(rows)), key=lambda index: digest(name, json.dumps(rows[index], sort_keys=True)))
    held = set(ranked[: min(MAX_EVALUATION_ROWS, len(rows) // 4)])
    return [row for i, row in enumerate(rows) if i not in held], [row for i, row in enumerate(rows) if i in held]


def _render(request: InitRequest, guess: Guess, num_seeds: int, num_evaluation: int) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["toml"] = _toml
    on_gpu = Path("/dev/nvidiactl").exists()
    return environment.get_template("recipe.toml.jinja").render(
        name=request.name,
        folder=request.directory / request.name,
        source=request.seeds.name,
        description=guess.description,
        num_seeds=num_seeds,
        num_evaluation=num_evaluation,
        input_field=guess.input_field,
        output_field=guess.output_field,
        answer_pattern=guess.answer_pattern,
        answer_kind=guess.answer_kind,
        labels=list(guess.labels),
        on_gpu=on_gpu,
        gpus=1.0 if on_gpu else 0.0,
        large=_sizes("large", request.large or DEFAULT_LARGE),
        small=_sizes("small", request.small or DEFAULT_SMALL),
    )


def _toml(value: str | list[str]) -> str:
    """A TOML literal; JSON's strings are TOML's, but for one control character that TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _sizes(pool: str, model: str) -> dict[str, Any]:
    """Lengths that fit the model's context, where the model is a folder here; else those of current chat models."""
    folder = Path(model).expanduser()
    context = 16384 if pool == "large" else 4096
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise RecipeError(f"--{pool}: {folder} holds no config.json; name a Hugging Face model folder or a hub id")
        context = min(context, context_tokens(str(folder)) or context)
    return {
        "model": str(folder.absolute()) if folder.is_dir() else model,
        "max_model_len": context,
        "kv_cache_bytes": CPU_KV_CACHE_BYTES[pool],
        "output_tokens": min(1024 if pool == "large" else 512, context // 4),
        "prefix_tokens": min(600, context // 4),
        "train_tokens": min(4096, context),
    }


def _farewell(folder: Path, guess: Guess, num_seeds: int, num_evaluation: int) -> str:
    labels = f" ({', '.join(guess.labels)})" if guess.labels else ""
    measured = (
        f"{num_evaluation} rows are held out in evaluation.jsonl"
        if num_evaluation
        else f"none (give --eval FILE, or {MIN_ROWS_TO_SPLIT} rows), so accuracy is 'not measured'"
    )
    return f"""wrote {folder}/recipe.toml
  input       '{guess.input_field}'
  output      '{guess.output_field}', answer kind {guess.answer_kind}{labels}
  seeds       {num_seeds} rows in seeds.jsonl
  evaluation  {measured}
Read the recipe, say in `description` what the task is, then:
  psi check {folder}
  psi run {folder} --limit 50    50 rows to look at, no training
  psi run {folder}               the whole way"""
