"""`psi show`: a look into a run folder, whatever is there of it. Reads nothing but the folder."""

import math
import random
import textwrap
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow.parquet as pq

from cluster.energy_report import energy_of
from cluster.progress import NOT_MEASURED, duration
from cluster.report_files import RunFiles, arm_folder, open_run
from cluster.report_principles import DRAFT_ESTIMATES, SOLVE_ESTIMATES, estimates_of, reasons
from cluster.report_time import read_time
from cluster.report_training import read_training
from cluster.report_yield import generation_speed, read_yield
from generation.dataset import DATASET_FOLDER
from generation.manifest import replay
from generation.principles.model import Principle, principles_file, read_principles
from generation.storage import Store
from generation.visible import ShardReader

WIDTH = 80
MAX_CANDIDATES = 5
MAX_REASONS = 12
MAX_TEXT_CHARS = 400
MAX_EXAMPLE_CHARS = 150
UNITS_FOR_EXAMPLES = 8
JOULES_PER_WATT_HOUR = 3600
TRIALS = {"generate": "drafts", "solve": "seeds", "check": "seeds", "": "seeds"}


def show_run(uri: str, rows: int = 5, seed: int = 0) -> str:
    """What to print about a run.

    Args:
        uri: The run folder.
        rows: Random rows of each arm's dataset to show.
        seed: Which ones.

    Raises:
        StorageError: There is no such folder.
    """
    files = open_run(Store(uri))
    name = files.settings.get("run", {}).get("name") or uri
    parts = [f"run {name} in {uri}", _principles(files.run)]
    for arm in files.generating_arms:
        folder = arm_folder(files.run, arm)
        parts += [
            f"arm {arm}\n{'=' * WIDTH}",
            _rows(folder, rows, seed),
            _rejections(files, arm),
            _throughput(files, arm),
            _time(files, arm),
            _training(files, arm),
        ]
    parts.append(_energy(files.run))
    return "\n\n".join(parts)


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, *(lines or [f"  {NOT_MEASURED}"])])


def _wrapped(text: str, first: str, rest: str | None = None) -> list[str]:
    """A text folded to the width; its own line breaks stay."""
    shown = text if len(text) <= MAX_TEXT_CHARS else f"{text[:MAX_TEXT_CHARS]} ..."
    rest = " " * len(first) if rest is None else rest
    lines: list[str] = []
    for line in shown.splitlines() or [""]:
        head = rest if lines else first
        lines += textwrap.wrap(line, WIDTH, initial_indent=head, subsequent_indent=rest) or [head.rstrip()]
    return lines


def _principles(store: Store) -> str:
    if not store.exists(principles_file(0)):
        return _section("principles", [])
    found = read_principles(store)
    active = [p for p in found if p.status == "active"]
    others = sorted((p for p in found if p.status == "candidate"), key=lambda p: -(p.utility or 0.0))
    retired = [p for p in found if p.status == "retired"]
    lines = [line for p in active for line in _principle(p)] or ["  none was selected"]
    if others:
        lines += ["  not selected, best first:", *(line for p in others[:MAX_CANDIDATES] for line in _principle(p))]
    for title, dropped in (("not selected", others), ("retired", retired)):
        counts = list(reasons(dropped).items())[:MAX_REASONS]
        lines += [f"  {title}, by reason:", *(f"  {n:>8,}  {reason}" for reason, n in counts)] if counts else []
    return _section(f"principles: {len(active)} selected, {len(others)} more candidates, {len(retired)} retired", lines)


def _principle(principle: Principle) -> list[str]:
    known = {name: value for name, value in estimates_of(principle).items() if value is not None}
    words = {**SOLVE_ESTIMATES, **DRAFT_ESTIMATES}
    said = [f"{e.value:+.2f} ({e.low:+.2f} to {e.high:+.2f}) {words[name]}" for name, e in known.items()]
    if principle.solve_accuracy is not None:
        said.insert(0, f"solves {principle.solve_accuracy:.2f}")
    items = max((e.items for e in known.values()), default=0)
    score = f"{', '.join(said)}; {items} {TRIALS[principle.kind]}" if said else f"utility {NOT_MEASURED}"
    head = f"{principle.task} / {principle.level} / {principle.kind or 'no kind'}, support {len(principle.support)}"
    return [*_wrapped(f"{head}: {score}", "  - ", "    "), *_wrapped(principle.text, "      ")]


def _rows(folder: Store, wanted: int, seed: int) -> str:
    names = [name for name in folder.names(DATASET_FOLDER) if name.endswith(".parquet")]
    if not wanted:
        return "rows: none asked for"
    if not names:
        return "rows\n  no dataset yet: it is written once all rows are accepted"
    total, picked = _pick(folder, names, wanted, seed)
    lines: list[str] = []
    for row in picked:
        agreement = row.get("agreement")
        agreed = f", {agreement:.0%} agreement" if agreement is not None else ""
        lines += [f"  [{row['task']}{agreed}]", *_wrapped(row["input"], "    input   ")]
        if row.get("rationale"):
            lines += _wrapped(row["rationale"], "    way     ")
        lines += _wrapped(row["answer"], "    answer  ")
    return _section(f"rows: {len(picked)} of {total:,}", lines)


def _pick(folder: Store, names: Sequence[str], wanted: int, seed: int) -> tuple[int, list[dict[str, Any]]]:
    """(rows in all files, random ones in file order); opens only the files that hold one of them."""
    paths = [folder.path(f"{DATASET_FOLDER}/{name}") for name in names]
    counts = [pq.read_metadata(path, filesystem=folder.filesystem).num_rows for path in paths]
    total = sum(counts)
    chosen = sorted(random.Random(seed).sample(range(total), min(wanted, total)))
    picked: list[dict[str, Any]] = []
    first = 0
    for path, count in zip(paths, counts, strict=True):
        here = [index - first for index in chosen if first <= index < first + count]
        if here:
            columns = ["task", "input", "answer", "rationale", "agreement"]
            picked += pq.read_table(path, columns=columns, filesystem=folder.filesystem).take(here).to_pylist()
        first += count
    return total, picked


def _rejections(files: RunFiles, arm: str) -> str:
    stages: Mapping[str, Any] = read_yield(files.metrics[arm], files.summaries[arm])["stages"]
    dropped = [
        (count, f"{stage}: {reason}") for stage, facts in stages.items() for reason, count in facts["reasons"].items()
    ]
    if not stages:
        return _section("rejections", [])
    flows = next(iter(stages.values()))["in"]
    dropped.sort(key=lambda item: -item[0])
    examples = _examples(arm_folder(files.run, arm))
    lines: list[str] = []
    for count, reason in dropped[:MAX_REASONS]:
        lines.append(f"  {count:>9,}  {count / max(flows, 1):>6.1%}  {reason[:58]}")
        if text := " ".join(examples.get(reason, "").split())[:MAX_EXAMPLE_CHARS]:
            lines += _wrapped(text, " " * 21 + "such as ")
    if len(dropped) > MAX_REASONS:
        lines.append(
            f"  and {sum(c for c, _ in dropped[MAX_REASONS:]):,} for {len(dropped) - MAX_REASONS} other reasons"
        )
    return _section(f"rejections, of {flows:,} rows begun", lines or ["  none"])


def _examples(folder: Store) -> dict[str, str]:
    """`stage: reason` to what the model wrote, from the first units; curation's own reasons are not in them."""
    reader, found = ShardReader(folder), dict[str, str]()
    for place in islice(replay(folder).state.places.values(), UNITS_FOR_EXAMPLES):
        for row in reader.rows(place):
            if row.status == "rejection":
                found.setdefault(f"{row.stage}: {row.reason}", row.raw or row.input)
    return found


def _throughput(files: RunFiles, arm: str) -> str:
    speed = generation_speed(files.metrics[arm])
    if speed["seconds"] is None:
        return _section("throughput", [])
    tokens, rows = speed["generated_tokens_per_second"], speed["accepted_rows_per_second"]
    return _section(
        "throughput", [f"  {tokens:,.0f} tokens/s, {rows:,.2f} accepted rows/s over {speed['seconds']:,.0f} s"]
    )


def _time(files: RunFiles, arm: str) -> str:
    found = read_time(files, arm)
    if not found["seconds"]:
        return _section("time of the replicas", [])
    whole = found["replica_seconds"]
    lines = [f"  {100 * value / whole:>5.1f} %  {part.replace('_', '-')}" for part, value in found["seconds"].items()]
    speeds = f"{found['accepted_tokens_per_second'] or 0:,.0f} tokens of accepted rows a second"
    per_hour, limit = found["accepted_tokens_per_gpu_hour"], found["roofline"]["achievable"]
    speeds += f", {per_hour if isinstance(per_hour, str) else f'{per_hour or 0:,.0f}'} per GPU-hour"
    hits = f"; prefix hits {100 * found['prefix_hit_share']:.0f} %" if found["prefix_hit_share"] is not None else ""
    lines.append(f"  {speeds}{hits}; of the roofline {limit if isinstance(limit, str) else f'{100 * limit:.0f} %'}")
    return _section(f"time of the replicas: {duration(whole)}", lines)


def _training(files: RunFiles, arm: str) -> str:
    found = read_training(files, arm)
    if not found["steps"]:
        return _section("training", [])
    losses = {source: each["held_out_loss"] for source, each in found["sources"].items() if "held_out_loss" in each}
    held_out = ", ".join(f"{source} {loss:.3f}" for source, loss in losses.items() if loss is not None)
    lines = [f"  loss {found['final_loss'] or math.nan:.3f} at the end; held out: {held_out or NOT_MEASURED}"]
    if found["tokens_per_second"] is not None:
        shares = {"supervised": "supervised", "padding": "padding", "data_wait": "waiting for data"}
        parts = [f"{100 * found[name]:.1f} % {words}" for name, words in shares.items() if found[name] is not None]
        lines.append(f"  {found['tokens_per_second']:,.0f} tokens/s; {', '.join(parts)}")
    return _section(f"training: {found['steps']:,} steps", lines)


def _energy(store: Store) -> str:
    found = energy_of(store)
    if found["total_joules"] is None:
        return _section("energy", [])
    lines = [f"  {found['total_joules'] / JOULES_PER_WATT_HOUR:,.2f} Wh in all ({found['method']})"]
    each = {name: arm["joules_per_accepted"] for name, arm in found["arms"].items()}
    lines += [f"  {joules:,.3g} J for an accepted row of {name}" for name, joules in each.items() if joules is not None]
    if found["ratio_to_large"] is not None:
        lines.append(f"  {found['ratio_to_large']:.2f} of what the large model would have taken for psi's rows")
    return _section("energy", lines)
