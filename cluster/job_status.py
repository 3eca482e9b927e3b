"""What `psi status` says: the jobs of a cluster, and how far one of them and its run have come."""

import re
import textwrap
import time
from collections.abc import Sequence
from datetime import datetime

from cluster.engine_book import noted_engines
from cluster.job_follow import exit_code_of
from cluster.job_server import Job
from cluster.progress import columns, duration
from cluster.report_files import arm_folder, moment, number, read_metrics, read_object, total
from cluster.submit import COMMAND, RUN
from generation.arms import arm_spec
from generation.errors import StorageError
from generation.storage import Store

WIDTH = 80
_LABEL = 10
_LAST_LINES = 5
_PATIENCE_SECONDS = 5.0


def jobs_table(jobs: Sequence[Job]) -> str:
    """The jobs that run psi, the newest first, in a table of 80 columns where their names leave room."""
    ours = [job for job in jobs if _command(job)]
    if not ours:
        return "no jobs yet; `psi submit RECIPE --address URL` makes one"
    rows = [("state", "command", "started", "took", "exit", " job")]
    for job in reversed(ours):
        started = f"{datetime.fromtimestamp(job.started).astimezone():%m-%d %H:%M}" if job.started else "-"
        took = duration(_seconds(job)) if job.started else "-"
        code = str(exit_code_of(job)) if job.is_over else ""
        rows.append((job.state, _command(job), started, took, code, f" {job.job_id}"))
    width = max(len(row[-1]) for row in rows)
    return "\n".join(line.rstrip() for line in columns([(*row[:-1], row[-1].ljust(width)) for row in rows]))


def job_text(job: Job, log: str) -> str:
    """A job, what it said last, and its run where that can be read from here.

    Args:
        job: The job.
        log: All that it has said.
    """
    state = f"{job.job_id}: {job.state}"
    if job.is_over:
        state += f", exit code {exit_code_of(job)}, after {duration(_seconds(job))}"
    elif job.started:
        state += f" for {duration(_seconds(job))}"
    lines = [*_labelled("job", state), *_labelled("command", job.entrypoint.removeprefix("exec "))]
    if run := job.metadata.get(RUN):
        lines += run_lines(run)
    said = [line for line in log.splitlines() if line.strip()][-(_LAST_LINES if job.is_over else 1) :]
    if job.is_over and job.state != "SUCCEEDED" and not said:
        said = job.message.splitlines()[-_LAST_LINES:]
    for label, line in zip(["said", *[""] * len(said)], said, strict=False):
        lines += _labelled(label, line)
    return "\n".join(lines)


def run_lines(uri: str) -> list[str]:
    """How far a run has come, from its folder: stages that are done, and rows of those that are being generated."""
    lines, store = _labelled("run", uri), Store(uri).patient(_PATIENCE_SECONDS)
    try:
        recipe = read_object(store, "recipe.json").get("recipe", {})
        if not recipe:
            return [*lines, *_labelled("", "not begun, or not to be read from here")]
        names = [name for name in store.names("stages") if name.endswith(".json")]
        stages = {name.removesuffix(".json"): read_object(store, f"stages/{name}") for name in names}
        arms = [arm for arm in recipe["generation"]["arms"] if arm_spec(arm).writes and f"generate-{arm}" not in stages]
        target = recipe["generation"]["accepted_rows"] * len(recipe["tasks"])
        rows = [text for arm in arms if (text := _rows(arm_folder(store, arm), arm, target))]
        engines = noted_engines(store)
    except StorageError as error:
        return [*lines, *_labelled("", f"cannot be read from here: {error}")]
    done = sorted(stages.items(), key=lambda item: moment(item[1].get("started")) or 0.0)
    said = ", ".join(f"{name} ({duration(number(stage, 'seconds'))})" for name, stage in done)
    return [
        *lines,
        *_labelled("done", said or "no stage yet"),
        *(line for text in rows for line in _labelled("rows", text)),
        *(line for text in engines for line in _labelled("engines", text)),
    ]


def _rows(folder: Store, arm: str, target: int) -> str:
    """Where an arm stands that generates, or did so when it was stopped; empty where it has not begun."""
    files = [name for name in folder.names("metrics") if name.startswith("generation-")]
    noted = read_metrics(folder, f"metrics/{files[-1]}") if files else []
    if not noted:
        return ""
    last = noted[-1]
    age = time.time() - (moment(last.get("time")) or time.time())
    return f"{arm}: {total(last.get('accepted')) or 0:,} of {target:,}, noted {duration(max(age, 0.0))} ago"


def _command(job: Job) -> str:
    """What psi does in a job, which others than `psi submit` may have submitted; empty where it runs something else."""
    match = re.match(r"psi (\w+)", job.entrypoint)
    return job.metadata.get(COMMAND, "") or (match[1] if match else "")


def _seconds(job: Job) -> float | None:
    return None if job.started is None else (job.ended or time.time()) - job.started


def _labelled(label: str, text: str) -> list[str]:
    """A text folded to the width, with a label before its first line."""
    first, rest = label.ljust(_LABEL), " " * _LABEL
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False) or [first]
