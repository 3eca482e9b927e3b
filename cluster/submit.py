"""Submitting a run as a Ray job: what goes along, the command, and what is noted of it. Secrets do not travel: the cluster's nodes hold them."""

import os
import re
import shlex
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.job_files import Parcel, gather
from cluster.job_follow import STOP_SECONDS
from cluster.job_recipe import read_remote_recipe, unread_recipe
from cluster.job_server import Job, JobServer
from generation.errors import RecipeError, RunLockedError
from generation.storage import digest

RUN, COMMAND = "psi_run", "psi_command"
"""What a job's metadata tell of it: its run folder, and the command of psi."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What shall be run, and where it lies.

    Attributes:
        recipe: A TOML file or a folder with recipe.toml; here, or, where it is in place, on the cluster.
        overrides: `section.field=value`.
        command: Of psi: `run`, or one stage.
        working_dir: A folder that goes along, with the recipe in it; None for that of the recipe.
        in_place: Whether nothing goes along.
        job_id: What the job shall be called; empty for a name after the run, with the number of the try.
    """

    recipe: Path
    overrides: Sequence[str] = ()
    command: str = "run"
    working_dir: Path | None = None
    in_place: bool = False
    job_id: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """A job before it is submitted.

    Attributes:
        entrypoint: What runs on the cluster.
        command: The command of psi in it.
        name: Of the run.
        run: The run folder; empty where only the cluster knows it.
        parcel: What goes along.
        job_id: What the job shall be called; empty for a name after the run, with the number of the try.
    """

    entrypoint: str
    command: str
    name: str
    run: str
    parcel: Parcel | None = None
    job_id: str = ""


def submit(server: JobServer, order: Order, say: Callable[[str], None]) -> str:
    """Submit a run; one that has stopped goes on. Returns the job's id.

    Raises:
        RecipeError: What goes along is too large, or the job's id is taken.
        RunLockedError: A job works on the run already.
        ClusterError: The cluster does not take it.
    """
    jobs = server.jobs()
    refuse_second(jobs, order)
    job_id = order.job_id or _next_id(jobs, order)
    environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}}
    with ExitStack() as stack:
        if order.parcel:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="psi-submit-")))
            order.parcel.pack(folder / "job.zip")
            environment["working_dir"] = str(folder / "job.zip")
            packed = (folder / "job.zip").stat().st_size
            say(f"sending {len(order.parcel.files):,} files of {order.parcel.root}, {packed / 2**20:,.1f} MiB packed")
            if held := ", ".join(map(str, order.parcel.withheld)):
                say(f"not sent, since they may hold keys and the recipe does not name them: {held}")
        try:
            server.submit(order.entrypoint, job_id, environment, {RUN: order.run, COMMAND: order.command})
        except RecipeError as error:
            if order.job_id:
                raise
            raise RunLockedError(str(error)) from error  # another `psi submit` was faster, and has taken the number
    return job_id


def order_of(submission: Submission) -> Order:
    """What to submit, from a recipe that lies here or on the cluster. Asks no cluster.

    Raises:
        RecipeError: The recipe or its paths are wrong, or it holds a secret.
    """
    file = submission.recipe / "recipe.toml" if submission.recipe.is_dir() else submission.recipe
    if submission.in_place:
        return _in_place(submission, file)
    if not file.is_file():
        raise RecipeError(f"{file}: no such recipe here; --in-place takes one that lies on the cluster")
    file = _without_dots(file)
    root = _without_dots(submission.working_dir) if submission.working_dir else file.parent
    if not file.is_relative_to(root):
        raise RecipeError(f"--working-dir: {file} does not lie in {root}; name a folder that holds the recipe")
    recipe = read_remote_recipe(file, submission.overrides, root)
    prefix = "" if submission.working_dir else root.name
    parcel = gather(root, prefix, [file, *recipe.needed])
    program = "python -m cluster.cli" if Path("cluster/cli.py") in parcel.files else "psi"
    there = Path(prefix) / file.relative_to(root)
    entrypoint = _entrypoint(program, submission.command, there, recipe.overrides)
    return Order(entrypoint, submission.command, recipe.name, recipe.run, parcel, submission.job_id)


def _without_dots(path: Path) -> Path:
    """A path from the root of the filesystem, by the names that were typed: links lead where they do on the cluster."""
    return Path(os.path.normpath(path.absolute()))


def _in_place(submission: Submission, file: Path) -> Order:
    """The order for a recipe in the image or on a shared filesystem; one that cannot be read here is looked at when the job starts."""
    if not file.is_absolute():
        raise RecipeError(f"{file}: is relative, and the job starts in another folder; name the path that it has there")
    read = (
        read_remote_recipe(file, submission.overrides, None) if file.is_file() else unread_recipe(submission.overrides)
    )
    entrypoint = _entrypoint("psi", submission.command, file, submission.overrides)
    return Order(entrypoint, submission.command, read.name, read.run, job_id=submission.job_id)


def _entrypoint(program: str, command: str, recipe: Path, overrides: Sequence[str]) -> str:
    """`exec`, so that no shell stands between Ray and the driver, which would be gone with the first SIGTERM and leave it behind."""
    words = [*program.split(), command, str(recipe), *overrides, "cluster.address=auto"]
    return f"exec {shlex.join(words)}"


def refuse_second(jobs: Sequence[Job], order: Order) -> None:
    """One driver works on a run; but training may wait for its dataset beside the one that generates it, and a report only reads.

    Raises:
        RunLockedError: A job works on it.
    """
    for job in jobs:
        commands = order.command, job.metadata.get(COMMAND)
        beside = "report" in commands or commands.count("train") == 1
        if order.run and job.metadata.get(RUN) == order.run and not job.is_over and not beside:
            raise RunLockedError(
                f"{order.run}: job {job.job_id} works on it ({job.state}); follow it with `psi logs {job.job_id}`, or end it"
                f" with `psi stop {job.job_id}` and submit again"
            )


def _next_id(jobs: Sequence[Job], order: Order) -> str:
    """The same for two who submit the same run at once, so that the cluster takes only one: `tickets-3f2a9c-2` for the second try."""
    start = f"{order.name}-{digest(order.run)[:6]}-"
    matches = (re.fullmatch(rf"{re.escape(start)}(\d+)", job.job_id) for job in jobs)
    return f"{start}{1 + max((int(match[1]) for match in matches if match), default=0)}"
