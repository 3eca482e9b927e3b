"""The `psi` commands that run a recipe as a job of a Ray cluster. Every import that takes time stands inside a command."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli_arguments import Overrides

if TYPE_CHECKING:
    from cluster.job_server import JobServer

INTERRUPTED = 130

app = typer.Typer()

Address = Annotated[
    str,
    typer.Option(
        metavar="URL",
        envvar="RAY_API_SERVER_ADDRESS",
        show_envvar=True,
        help="The cluster's dashboard, such as http://HOST:8265.",
        show_default=False,
    ),
]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Its id, as `psi submit` and `psi status` say it.")]


class Stage(StrEnum):
    """Commands of psi that make sense as a job, other than `run`."""

    principles = "principles"
    generate = "generate"
    train = "train"
    evaluate = "evaluate"
    report = "report"
    compare = "compare"


_SUBMIT_EPILOG = """\b
Examples:
  psi submit mytask --address http://HOST:8265 run.output=/shared/runs/mytask
  psi submit mytask --address ... --stage generate pools.small.replicas=64
  psi submit /etc/psi/recipe.toml --in-place --address ...

\b
What runs there
  The psi that is installed on the cluster, or the one in --working-dir where
  that holds cluster/, generation/ and training/. The recipe's folder goes
  along, up to 100 MiB packed: without hidden files, venv, runs, models, what
  .gitignore and .rayignore name, and files whose names tell of keys (*.env,
  *.pem, *credentials* and such), but with all that the recipe names.
  Absolute paths are the cluster's own; run.output must be one, or an URI.

\b
Who may
  Clusters with token authentication take RAY_AUTH_MODE=token and
  RAY_AUTH_TOKEN_PATH=FILE (or RAY_AUTH_TOKEN). Other secrets should stay
  here, and a recipe with one is refused, but no file is read for them: the
  cluster's nodes hold them in environment variables, which recipes name.

\b
How it ends
  With the exit code of the job, 143 where it was stopped. A lost connection
  is not the end of a job. Ctrl-C asks whether to stop it or to let it run;
  without a terminal it runs on. The same command again resumes a run.
"""


@app.command(epilog=_SUBMIT_EPILOG)
def submit(  # noqa: PLR0913 - a parameter is an option of the command
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="TOML file, or a folder with recipe.toml.")],
    address: Address,
    overrides: Overrides = None,
    stage: Annotated[
        Stage | None,
        typer.Option(metavar="STAGE", help="principles, generate, train, evaluate, report or compare. Default: run."),
    ] = None,
    working_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Send this folder, which holds the recipe.", show_default=False),
    ] = None,
    *,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Send nothing: RECIPE is a path on the cluster.")
    ] = False,
    job_id: Annotated[str, typer.Option("--id", help="Default: the run's name and a number.", show_default=False)] = "",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the job.")] = False,
) -> None:
    """Run a recipe as a job of a Ray cluster, and follow it."""
    from cluster.job_server import JobServer
    from cluster.submit import Submission, order_of
    from cluster.submit import submit as submit_order

    command = stage.value if stage else "run"
    order = order_of(Submission(recipe, overrides or [], command, working_dir, in_place, job_id))
    server = JobServer(address)
    job = submit_order(server, order, _say)
    _say(f"job {job}")
    if no_wait:
        _say(_commands(server, job))
        return
    raise typer.Exit(_attend(server, job))


@app.command(epilog="\b\nExample:\n  psi logs mytask-3f2a9c-1 --address http://HOST:8265")
def logs(job: JobArgument, address: Address) -> None:
    """Follow the log of a job from its start; exit as it does."""
    from cluster.job_server import JobServer

    raise typer.Exit(_attend(JobServer(address), job))


@app.command(epilog="\b\nExample:\n  psi status mytask-3f2a9c-1 --address http://HOST:8265")
def status(
    address: Address,
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="Its id. Default: all jobs.", show_default=False)
    ] = None,
) -> None:
    """List the jobs of a cluster, or say how far one has come."""
    from cluster.job_server import JobServer
    from cluster.job_status import job_text, jobs_table

    server = JobServer(address)
    typer.echo(jobs_table(server.jobs()) if job is None else job_text(server.find(job), server.log(job)))


@app.command(epilog="\b\nExample:\n  psi stop mytask-3f2a9c-1 --address http://HOST:8265")
def stop(job: JobArgument, address: Address) -> None:
    """Have a job commit what is under way, then end.

    Replicas begin nothing new, training saves a checkpoint. `psi submit` with the same recipe goes on from there.
    """
    from cluster.job_follow import ending, stop_job
    from cluster.job_server import JobServer
    from cluster.job_status import run_lines
    from cluster.submit import RUN

    ended = stop_job(JobServer(address), job, _say)
    _say(ending(ended))
    if run := ended.metadata.get(RUN):
        typer.echo("\n".join(run_lines(run)))


def _attend(server: "JobServer", job: str) -> int:
    """Follow a job to its end; Ctrl-C asks what shall become of it. Returns the exit code."""
    from cluster.job_follow import LogFollower, ending, exit_code_of

    follower = LogFollower(server, job, _write, _say)
    while True:
        try:
            ended = follower.follow()
            _say(ending(ended))
            return exit_code_of(ended)
        except KeyboardInterrupt:
            match _asked():
                case "s":
                    _say("asked to stop; what is under way is committed first")
                    server.stop(job)
                case "c":
                    pass
                case _:
                    _say(f"job {job} goes on\n{_commands(server, job)}")
                    return INTERRUPTED


def _asked() -> str:
    """What to do with the job: s(top), d(etach) or c(ontinue). Nobody to ask means to detach."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "d"
    try:
        typer.echo("\n[s]top the job, [d]etach and let it run, or [c]ontinue to follow it? [d] ", err=True, nl=False)
        return sys.stdin.readline().strip().lower()[:1] or "d"
    except KeyboardInterrupt:
        return "d"


def _commands(server: "JobServer", job: str) -> str:
    return "\n".join(f"  psi {command:<6} {job} --address {server.address}" for command in ("logs", "status", "stop"))


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _write(text: str) -> None:
    typer.echo(text, nl=False)
