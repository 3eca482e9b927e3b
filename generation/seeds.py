"""Human examples: read from the user's files, checked row by row, split for mining, validation and demonstration.

Every problem of every file is reported at once, by file and line, before any engine starts. Messages about private tasks hold no
content of rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from generation.answers import cut_answer, extract_answer
from generation.config import TaskConfig
from generation.errors import SeedError
from generation.seed_files import BadRow, RawRow, read_rows
from generation.storage import digest
from generation.task import Seed, Split, Task

MAX_LISTED = 50
"""Problems listed in one message; the rest is counted."""
_MINE_SHARE, _VALIDATE_SHARE = 0.5, 0.25


def load_tasks(configs: Sequence[TaskConfig]) -> list[Task]:
    """Read, check and split the seeds of all tasks, and check them against the evaluation sets.

    Raises:
        SeedError: Rows are wrong; the message lists them for all tasks.
    """
    tasks: list[Task] = []
    problems: list[str] = []
    for config in configs:
        seeds, evaluation = _read(config, "seeds"), _read(config, "evaluation")
        problems += [*seeds.problems, *evaluation.problems, *_overlaps(seeds, evaluation)]
        tasks.append(Task(config, tuple(split_seeds(config, seeds.seeds))))
    _raise(problems)
    return tasks


def load_evaluation(config: TaskConfig) -> list[Seed]:
    """The evaluation rows of one task, in file order; empty where the recipe names no file.

    Raises:
        SeedError: Rows are wrong; the message lists them.
    """
    reading = _read(config, "evaluation")
    _raise(reading.problems)
    return reading.seeds


def split_seeds(config: TaskConfig, seeds: Sequence[Seed]) -> list[Seed]:
    """Split into mine, validate and demo, 50 / 25 / 25, each with at least one where there are three; order is kept.

    Seeds stand on a line from 0 to 1 by the hash of their id, for choice tasks label by label, and the line is cut at the shares. So
    labels spread evenly, and a row that is added moves only its neighbours at the two cuts.
    """
    groups: dict[str, list[Seed]] = {}
    for seed in seeds:
        groups.setdefault(seed.output if config.answer.kind == "choice" else "", []).append(seed)
    line: list[tuple[float, str]] = []
    for label, group in groups.items():
        offset = int(digest("split", label)[:12], 16) / 16**12
        ids = sorted(seed.seed_id for seed in group)
        line += [((rank + offset) / len(ids), seed_id) for rank, seed_id in enumerate(ids)]
    line.sort()
    demo = validate = max(1, round(_VALIDATE_SHARE * len(seeds)))
    mine = max(1, len(seeds) - validate - demo)
    shares: list[tuple[Split, int]] = [("mine", mine), ("validate", validate), ("demo", demo)]
    names = [name for name, count in shares for _ in range(count)]
    by_id = {seed_id: name for (_, seed_id), name in zip(line, names, strict=False)}
    return [replace(seed, split=by_id[seed.seed_id]) for seed in seeds]


@dataclass(slots=True)
class _Reading:
    seeds: list[Seed] = field(default_factory=list[Seed])
    places: dict[str, str] = field(default_factory=dict[str, str])
    """Normalised input to where it first stands."""
    problems: list[str] = field(default_factory=list[str])


def _read(config: TaskConfig, role: str) -> _Reading:
    reading = _Reading()
    path, limit = (config.seeds, config.max_seeds) if role == "seeds" else (config.evaluation, config.max_evaluation)
    if path is None:
        return reading
    for row in _first(read_rows(Path(path)), limit):
        if isinstance(row, BadRow):
            reading.problems.append(f"{row.where}: {row.problem}")
            continue
        seed = _seed(config, row, reading.problems)
        if seed is None:
            continue
        earlier = reading.places.setdefault(_same(seed.input), row.where)
        # A public benchmark may repeat an item; among seeds a repeat would stand in two splits.
        if earlier != row.where and role == "seeds":
            reading.problems.append(f"{row.where}: has the input of {earlier}; remove one of them")
        else:
            reading.seeds.append(seed)
    return reading


def _first(rows: Iterator[RawRow | BadRow], limit: int | None) -> Iterator[RawRow | BadRow]:
    for index, row in enumerate(rows):
        if limit is not None and index >= limit:
            return
        yield row


def _seed(config: TaskConfig, row: RawRow, problems: list[str]) -> Seed | None:
    """The row as a seed; its problems are appended, all of them."""
    fields = config.fields
    before = len(problems)
    text = _cell(row, fields.input, problems)
    output = _cell(row, fields.output, problems)
    rationale = _cell(row, fields.rationale, problems) if fields.rationale else ""
    if len(problems) > before:
        return None
    pattern = fields.answer_pattern or config.answer.pattern
    cut = cut_answer(pattern, output) if pattern else ("", output)
    if cut is None:
        problems.append(f"{row.where}: the pattern {pattern!r} finds nothing in '{fields.output}'")
        return None
    answer = extract_answer(config.answer, cut[1])
    # A whole label must stand there: "not sure, maybe yes" is no label, though `yes` could be found in it.
    if answer is None or (config.answer.kind == "choice" and _same(answer) != _same(cut[1])):
        problems.append(f"{row.where}: {_no_answer(config, cut[1])}")
        return None
    rationale = rationale if fields.rationale else cut[0]
    return Seed(digest(config.name, text, output), text, answer, rationale)


def _cell(row: RawRow, column: str, problems: list[str]) -> str:
    """A column's text, stripped; empty with a problem noted where there is none."""
    value: Any = row.values.get(column)
    problem = ""
    if column not in row.values:
        problem = f"has no field '{column}'; it has {', '.join(map(repr, row.values)) or 'none'}; set [tasks.fields]"
    elif value is None or (isinstance(value, str) and not value.strip()):
        problem = f"'{column}' is empty"
    elif not isinstance(value, str | int | float):
        problem = f"'{column}' is a {type(value).__name__}, not a text"
    elif not str(value).isprintable() and not _encodes(str(value)):
        problem = f"'{column}' is not UTF-8: it holds half of a surrogate pair"
    if problem:
        problems.append(f"{row.where}: {problem}")
        return ""
    return str(value).strip()


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_answer(config: TaskConfig, output: str) -> str:
    """Why there is no answer in an output, with the output itself only for public tasks."""
    shown = "" if config.privacy == "private" else f" {output[:60]!r}"
    column = config.fields.output
    if config.answer.kind == "choice":
        return f"'{column}'{shown} is not one of the labels {', '.join(config.answer.labels)}"
    return f"no {config.answer.kind} answer in '{column}'{shown}"


def _same(text: str) -> str:
    return " ".join(text.split()).casefold()


def _overlaps(seeds: _Reading, evaluation: _Reading) -> list[str]:
    return [
        f"{where}: has the input of {evaluation.places[key]}, which is held out for evaluation; remove one of them"
        for key, where in seeds.places.items()
        if key in evaluation.places
    ]


def _raise(problems: Sequence[str]) -> None:
    if not problems:
        return
    listed = "\n".join(f"  {problem}" for problem in problems[:MAX_LISTED])
    more = f"\n  ... and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
    rows = "1 row cannot" if len(problems) == 1 else f"{len(problems)} rows cannot"
    raise SeedError(f"{rows} be used; correct or remove what is listed:\n{listed}{more}")
