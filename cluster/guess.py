"""What a user's file is about: its columns, the kind of its answers. Guesses only; `psi init` writes them down to be corrected."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generation.answers import canonical_answer
from generation.config import AnswerConfig
from generation.errors import RecipeError, SeedError
from generation.seed_files import BadRow, read_rows
from generation.seeds import MAX_LISTED

INPUT_NAMES = ("input", "question", "problem", "prompt", "instruction", "text", "sentence", "review", "query", "x")
OUTPUT_NAMES = ("output", "answer", "target", "label", "response", "completion", "solution", "class", "category", "y")
KINDS = ("choice", "number", "exact", "open")
MARKED_ANSWER = r"####\s*(.+)"
"""`... #### 72`, the form of GSM8K: the way there, a mark, the answer."""
MAX_LABELS = 12
MAX_LABEL_CHARS = 40
MAX_EXACT_CHARS = 120


@dataclass(frozen=True, slots=True)
class Guess:
    """A task as a file suggests it.

    Attributes:
        input_field: Column with the input.
        output_field: Column with the answer.
        answer_kind: As in `AnswerConfig`.
        labels: The label space of a choice, most frequent first.
        answer_pattern: Where the answer stands in the output, or None.
    """

    input_field: str
    output_field: str
    answer_kind: str
    labels: tuple[str, ...] = ()
    answer_pattern: str | None = None

    @property
    def description(self) -> str:
        """A first description, to be improved by the user."""
        match self.answer_kind:
            case "choice":
                return f"Read the {self.input_field} and answer with one of: {', '.join(self.labels)}."
            case "number":
                return f"Read the {self.input_field} and work out the answer, which is one number."
            case _:
                return f"Read the {self.input_field} and write the {self.output_field} that belongs to it."


def read_columns(path: Path) -> list[dict[str, Any]]:
    """All rows of a file.

    Raises:
        SeedError: Some cannot be read; the message lists them.
    """
    rows = list(read_rows(path))
    bad = [f"  {row.where}: {row.problem}" for row in rows if isinstance(row, BadRow)]
    if bad:
        more = f"\n  ... and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        raise SeedError(f"{path}: rows cannot be read:\n" + "\n".join(bad[:MAX_LISTED]) + more)
    return [row.values for row in rows if not isinstance(row, BadRow)]


def guess_task(
    rows: Sequence[dict[str, Any]], input_field: str | None, output_field: str | None, kind: str | None
) -> Guess:
    """Guess what is None.

    Args:
        rows: The file's rows.
        input_field: The input's column, where the user says so.
        output_field: The answer's column, where the user says so.
        kind: The answer kind, where the user says so.

    Raises:
        RecipeError: The columns do not show which is which, or there is no such kind.
    """
    if kind is not None and kind not in KINDS:
        raise RecipeError(f"--answer-kind: {kind} is none of {', '.join(KINDS)}; a regex is set in the recipe")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    found_output = output_field or _named(columns, OUTPUT_NAMES, {input_field})
    found_input = input_field or _named(columns, INPUT_NAMES, {found_output})
    if len(columns) == 2 and found_output is None:
        found_output = next(column for column in columns if column != (found_input or columns[0]))
    if len(columns) == 2 and found_input is None:
        found_input = next(column for column in columns if column != found_output)
    for option, column in (("--input-field", found_input), ("--output-field", found_output)):
        if column not in columns:
            raise RecipeError(
                f"{option}: {column or 'no column'} {'is not there' if column else 'looks right'}; "
                f"the columns are {', '.join(columns)}; name one"
            )
    assert found_input is not None
    assert found_output is not None
    outputs = [str(row.get(found_output) or "").strip() for row in rows]
    if kind is None and all("####" in output for output in outputs):
        return Guess(found_input, found_output, "number", answer_pattern=MARKED_ANSWER)
    kind = kind or _kind(outputs)
    return Guess(found_input, found_output, kind, _labels(outputs) if kind == "choice" else ())


def _named(columns: Sequence[str], names: Sequence[str], taken: set[str | None]) -> str | None:
    folded = {column.casefold().strip(): column for column in reversed(columns) if column not in taken}
    return next((folded[name] for name in names if name in folded), None)


def _kind(outputs: Sequence[str]) -> str:
    if all(_is_number(output) for output in outputs):
        return "number"
    counts = Counter(output.casefold() for output in outputs)
    # Labels repeat: three rows each on average tell a label space from answers that happen to be short.
    if len(counts) <= min(MAX_LABELS, len(outputs) // 3) and all(len(label) <= MAX_LABEL_CHARS for label in counts):
        return "choice"
    return "exact" if all(len(text) <= MAX_EXACT_CHARS and "\n" not in text for text in outputs) else "open"


def _is_number(output: str) -> bool:
    bare = output.replace(",", "").replace("$", "").replace("%", "").strip()
    try:
        float(bare)
    except ValueError:
        return False
    return canonical_answer(AnswerConfig(kind="number"), output) is not None


def _labels(outputs: Sequence[str]) -> tuple[str, ...]:
    """Distinct labels, most frequent first, in the spelling that comes first."""
    spelling: dict[str, str] = {}
    for output in outputs:
        spelling.setdefault(" ".join(output.split()).casefold(), " ".join(output.split()))
    counts = Counter(" ".join(output.split()).casefold() for output in outputs if output)
    return tuple(spelling[label] for label, _ in counts.most_common())
