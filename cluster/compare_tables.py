"""The tables of a comparison on labels, yield, tokens and energy. What is None is printed as not measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.progress import NOT_MEASURED, count, percent

Table = list[tuple[str, ...]]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table that is aligned as plain text too: the first column to the left, the others to the right."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    rule = [f":{'-' * (widths[0] - 1)}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    lines = [_line(row, widths) for row in cells]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if place else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"


LABEL_NOTE = (
    "Truth is the oracle's, where the recipe names one: of the first answer to each input that was voted on, and of the answers in the dataset. "
    "Distinct bigrams: different pairs of words among all pairs of words in the inputs; cell entropy: how evenly the cells of the plan were "
    "used; both are means over tasks. Below, overshoot are rows that were accepted beyond the target."
)


def shown(value: object) -> str:
    """Any other value as text."""
    return NOT_MEASURED if value is None or value == "" else str(value)


def figure(value: float | None) -> str:
    """A physical quantity in four significant digits."""
    return NOT_MEASURED if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def label_table(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """How true and how varied the rows are that each arm wrote."""
    rows: Table = [("arm", "first answers true", "labels true", "distinct bigrams", "cell entropy")]
    for name, arm in arms.items():
        if "tokens" in arm:
            entropy = arm["cell_entropy_bits"]
            rows.append(
                (
                    name,
                    percent(arm["label_accuracy_first"]),
                    percent(arm["label_accuracy"]),
                    percent(arm["distinct_2"]),
                    NOT_MEASURED if entropy is None else f"{entropy:.2f} bits",
                )
            )
    return markdown(rows) if len(rows) > 1 else ""


def yield_table(yields: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows left after each stage that dropped rows in any arm."""
    dropping = {name for arm in yields.values() for name, stage in arm["stages"].items() if stage["in"] > stage["out"]}
    in_order = dict.fromkeys(name for arm in yields.values() for name in arm["stages"])
    stages = [name for name in in_order if name in dropping]
    rows: Table = [("rows left after", "start", *(stage.replace("_", " ") for stage in stages), "of start")]
    for name, arm in yields.items():
        left = [count(arm["stages"].get(stage, {}).get("out")) for stage in stages]
        share = arm["rows"] / arm["flows"] if arm["rows"] is not None and arm["flows"] else None
        rows.append((name, count(arm["flows"]), *left, percent(share)))
    return markdown(rows) if len(rows) > 1 else ""


def token_table(arms: Mapping[str, Mapping[str, Any]], energy: Mapping[str, Any]) -> str:
    """Tokens and energy that each arm's dataset took, the principles it was written from included in the tokens."""
    rows: Table = [("arm", "large tokens", "small tokens", "large share", "J generating", "rows accepted", "J a row")]
    for name, arm in arms.items():
        if "tokens" in arm:
            tokens, joules = arm["tokens"], (energy.get("arms") or {}).get(name, {})
            rows.append(
                (
                    name,
                    count(tokens["large"]),
                    count(tokens["small"]),
                    percent(tokens["large_share"]),
                    figure(joules.get("joules_generate")),
                    count(joules.get("accepted")),
                    figure(joules.get("joules_per_accepted")),
                )
            )
    return markdown(rows) if len(rows) > 1 else ""


def energy_lines(energy: Mapping[str, Any]) -> list[str]:
    """The energy claim in sentences, the ratio to `large` first.

    Args:
        energy: What `cluster.energy_report.energy_of` found.
    """
    assumed = energy["assumptions"]
    whole = "Energy of all stages: not measured."
    if energy["total_joules"] is not None:
        whole = (
            f"Energy of all stages: {figure(energy['total_joules'])} J at the computers ({energy['method']}, {percent(energy['measured_share'])} of it "
            f"by counters; of CPUs the time is measured, at an assumed {figure(assumed['watts_per_core'])} W per busy core: "
            f"{assumed['watts_source']}); of that, finding principles: {_quantity(energy['principles_joules'], 'J')}."
        )
    return [
        *_against_large(energy["counterfactual"]),
        f"{whole} {_carbon(energy)} Not counted: {assumed['not_counted']}.",
    ]


def _quantity(value: float | None, unit: str) -> str:
    return NOT_MEASURED if value is None else f"{figure(value)} {unit}"


def _carbon(energy: Mapping[str, Any]) -> str:
    carbon, pue = energy["carbon"], f"PUE {figure(energy['pue'])} ({energy['assumptions']['pue_source']})"
    if carbon["g_per_kwh"] is None:
        return f"{pue}; the recipe names no grid, so there are no grams."
    return f"{pue}; carbon: {_quantity(carbon['grams'], 'g')} at {figure(carbon['g_per_kwh'])} g/kWh ({carbon['source']}, {carbon['basis']})."


def _against_large(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["Energy ratio to `large`: not measured."]
    few = (
        ""
        if found["enough_drafts"]
        else f" The large model's energy a row is taken from only {count(found['large_drafts'])} drafts."
    )
    equal = found["equal_accuracy"]
    return [
        f"Energy ratio to `large`: {figure(found['ratio'])} ({found['method']}), break-even at {_rows(found['break_even_rows'])}; with one "
        f"start of each engine counted: {figure(found['ratio_with_starts'])}, break-even at {_rows(found['break_even_rows_with_starts'])}.",
        f"The first is {figure(found['psi_joules'])} J for psi's principles and {count(found['rows'])} rows against "
        f"{figure(found['large_joules'])} J for as many rows of the large model, each with its own yield. "
        f"At equal accuracy: {equal['status']} (psi minus large {_points(equal)}).{few}",
    ]


def _rows(even: float | str | None) -> str:
    return even if isinstance(even, str) else NOT_MEASURED if even is None else f"{count(even)} rows"


def _points(equal: Mapping[str, Any]) -> str:
    if equal["difference"] is None:
        return NOT_MEASURED
    low, high = equal["ci95"]
    return f"{100 * equal['difference']:+.1f} points, [{100 * low:+.1f}, {100 * high:+.1f}]"


def token_lines(tokens: Mapping[str, Mapping[str, Any]]) -> str:
    """Tokens of the whole run by model."""
    parts = [
        f"{model} model: {count(tokens[model]['prompt'])} prompt tokens ({count(tokens[model]['cached'])} cached), "
        f"{count(tokens[model]['generated'])} generated"
        for model in ("large", "small")
    ]
    return f"The whole run, evaluation included: {'; '.join(parts)}."
