"""What a principle is, how principles lie on storage, and principles that come from a file instead of a large model."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from generation.errors import RecipeError
from generation.storage import Store, digest

Kind = Literal["generate", "solve", "check"]
Status = Literal["candidate", "active", "retired"]

IMPORTED = "file"
"""`Principle.model` of those that a user wrote."""
KINDS: tuple[Kind, ...] = ("generate", "solve", "check")


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference that was measured, with its 95 % bootstrap interval.

    Attributes:
        value: The difference, ours minus theirs.
        low: Lower end of the interval.
        high: Its upper end.
        items: On so many items of ours.
    """

    value: float
    low: float
    high: float
    items: int


@dataclass(frozen=True, slots=True)
class Principle:
    """A short rule on a task. Templates see it.

    Attributes:
        principle_id: Digest of task, level, kind and normalised text.
        task: Task name.
        level: Level of the recipe: `task`, `skill`, `instance`, `error` or another.
        kind: What it helps with: `generate` (write an input), `solve` or `check` (an answer); empty where it could not be read.
        text: The rule.
        when: When it applies, or empty.
        support: Ids of the seeds that speak for it.
        model: Weight digest or name of the model that wrote it; `IMPORTED`: a user.
        template: Template that asked for it.
        calls: Keys of the calls that gave it, in the journal.
        round: Evolution round, from 0.
        shown: Ids of the seeds that its calls showed, whether it names them or not: it is tried on none of them.
        tried_on: `validate` (seeds of that split), `cross-fit` (few seeds: also those to mine that its calls did not show) or empty.
        solve_accuracy: Accuracy of the small model with this principle alone; None: not measured.
        solve_gain: That minus its accuracy with no principle, on the same seeds.
        placebo_gain: That minus its accuracy with a placebo of the same length, on the same seeds.
        parse_delta: Share of drafts that hold an input, minus that of a placebo of the same length in the same bundle.
        yield_delta: The same of drafts whose blind answers agree.
        novelty_delta: The same of 1 minus the largest cosine of a draft to any seed and other draft, in the mean.
        coverage_delta: The same of the share of held-out seeds that some draft comes near.
        utility: Score by which it was ranked among the candidates of its task, in standard deviations; None: not tried.
        leaks: Whether it failed the leak gate.
        status: `candidate` (passed the gates, not selected), `active` (selected) or `retired` (failed a gate, or merged).
        reason: Why it has that status.
    """

    principle_id: str
    task: str
    level: str
    kind: Kind | Literal[""]
    text: str
    when: str = ""
    support: tuple[str, ...] = ()
    model: str = ""
    template: str = ""
    calls: tuple[str, ...] = ()
    round: int = 0
    shown: tuple[str, ...] = ()
    tried_on: str = ""
    solve_accuracy: float | None = None
    solve_gain: Difference | None = None
    placebo_gain: Difference | None = None
    parse_delta: Difference | None = None
    yield_delta: Difference | None = None
    novelty_delta: Difference | None = None
    coverage_delta: Difference | None = None
    utility: float | None = None
    leaks: bool = False
    status: Status = "candidate"
    reason: str = ""


_ARROW: dict[Any, Any] = {
    int: pa.int32(),
    bool: pa.bool_(),
    float | None: pa.float64(),
    tuple[str, ...]: pa.list_(pa.string()),
    Difference | None: pa.struct(
        [("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64()), ("items", pa.int32())]
    ),
}

PRINCIPLE_SCHEMA = pa.schema([pa.field(f.name, _ARROW.get(f.type, pa.string())) for f in fields(Principle)])


def normalise(text: str) -> str:
    """The text by which two principles are the same: case, outer punctuation and runs of space do not count."""
    return " ".join(text.casefold().split()).strip(" .!")


def principle_id(task: str, level: str, kind: str, text: str) -> str:
    """The id of a principle: the same rule found twice has one id."""
    return digest(task, level, kind, normalise(text))


def principles_file(round_number: int) -> str:
    """Where a round's principles lie in a run folder."""
    return f"principles/round-{round_number}.arrow"


def write_principles(store: Store, principles: Sequence[Principle], round_number: int = 0) -> str:
    """Write every candidate of a round as one Arrow file; returns its path in the run folder.

    Raises:
        FileExistsError: The round's principles were written before.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, PRINCIPLE_SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist([asdict(p) for p in principles], schema=PRINCIPLE_SCHEMA))
    path = principles_file(round_number)
    store.write_new(path, sink.getvalue().to_pybytes())
    return path


def read_principles(store: Store, round_number: int = 0) -> list[Principle]:
    """The principles of a round, as written."""
    with pa.ipc.open_file(pa.BufferReader(store.read(principles_file(round_number)))) as reader:
        rows: list[dict[str, Any]] = reader.read_all().to_pylist()
    return [Principle(**{f.name: _READ.get(f.type, _as_is)(row[f.name]) for f in fields(Principle)}) for row in rows]


def _as_is(value: Any) -> Any:
    return value


def _estimate(value: dict[str, Any] | None) -> Difference | None:
    return None if value is None else Difference(**value)


_READ: dict[Any, Callable[[Any], Any]] = {tuple[str, ...]: tuple, Difference | None: _estimate}


def load_principles(path: str | Path, tasks: Sequence[str], levels: Sequence[str]) -> list[Principle]:
    """Principles that a user wrote: JSONL of `task`, `level`, `kind`, `text` and optionally `when`. All are active.

    Args:
        path: The file.
        tasks: Names of the recipe's tasks; each needs at least one principle.
        levels: Names of its levels.

    Raises:
        RecipeError: The file cannot be read, or some of its lines are wrong; the message lists all of them.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"principles.from: {path}: cannot read: {error}") from error
    loaded: dict[str, Principle] = {}
    wrong: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = _from_line(line, tasks, levels)
        if isinstance(found, str):
            wrong.append(f"line {number}: {found}")
        elif found.principle_id in loaded:
            wrong.append(f"line {number}: the same principle stands on an earlier line")
        else:
            loaded[found.principle_id] = found
    covered = {p.task for p in loaded.values()}
    wrong += [f"no principle for task '{task}'" for task in tasks if not wrong and task not in covered]
    if wrong:
        raise RecipeError(f"principles.from: {path}:\n  " + "\n  ".join(wrong))
    return list(loaded.values())


def _from_line(line: str, tasks: Sequence[str], levels: Sequence[str]) -> Principle | str:
    """The principle on a line, or what is wrong with it."""
    try:
        value: Any = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON: {error}"
    problem = _problem(value, tasks, levels) if isinstance(value, dict) else "not a JSON object"
    if problem:
        return problem
    task, level, kind, text = (value[key].strip() for key in ("task", "level", "kind", "text"))
    return Principle(
        principle_id(task, level, kind, text), task, level, kind, text,
        when=value.get("when", "").strip(), model=IMPORTED, status="active", reason="from principles.from",
    )  # fmt: skip


def _problem(value: Any, tasks: Sequence[str], levels: Sequence[str]) -> str:
    wanted = ("task", "level", "kind", "text")
    missing = [key for key in wanted if not isinstance(value.get(key), str) or not value[key].strip()]
    unknown = sorted(set(value) - {*wanted, "when"})
    if missing:
        return f"{', '.join(missing)}: missing or not a text"
    if unknown:
        return f"{', '.join(unknown)}: unknown; a principle has task, level, kind, text and optionally when"
    if not isinstance(value.get("when", ""), str):
        return "when: not a text"
    known = (("kind", "", KINDS), ("task", "the recipe's: ", tasks), ("level", "principles.levels: ", levels))
    for key, whose, names in known:
        if value[key].strip() not in names:
            return f"{key}: {value[key]!r} is none of {whose}{', '.join(names)}"
    return ""
