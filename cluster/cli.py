"""The `psi` command. Every import that takes time stands inside a command, so that `psi --help` answers at once."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster import cli_jobs, cli_stages
from cluster.cli_arguments import Overrides, RecipeArgument

_EPILOG = """\b
Start here:
  psi init mytask --seeds examples.csv      a recipe folder for your own task
  psi check mytask                          what is wrong, what it will take
  psi run mytask --limit 50                 50 rows to look at, no training
  psi run mytask                            the whole way; run again to resume
  psi submit mytask --address URL           the same as a job of a Ray cluster

\b
Any field can be set for one command: section.field=value
  psi run mytask generation.accepted_rows=5000 pools.small.replicas=4
"""

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    epilog=_EPILOG,
    context_settings={"max_content_width": 80, "help_option_names": ["-h", "--help"]},
)

app.add_typer(cli_stages.app)
app.add_typer(cli_jobs.app)


@app.callback()
def _root(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages.")] = False,
) -> None:
    """PSI trains a language model from a handful of examples: a large model distils principles from them, a small one writes
    the data by these principles, and is trained on it.
    """  # noqa: D205 - help text: one paragraph
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


@app.command(epilog="\b\nExample:\n  psi init sentiment --seeds reviews.csv --small Qwen/Qwen2.5-0.5B-Instruct")
def init(  # noqa: PLR0913 - a parameter is an option of the command
    name: Annotated[str, typer.Argument(help="Name of the task and of its folder.")],
    seeds: Annotated[
        Path | None, typer.Option(help="Your examples: JSONL, CSV, Parquet or a `datasets` folder.")
    ] = None,
    compose: Annotated[
        str | None,
        typer.Option(help='Instead of --seeds, a task of the miniature: "sort; reverse".', show_default=False),
    ] = None,
    input_field: Annotated[str | None, typer.Option(help="Column with the input. Default: guessed.")] = None,
    output_field: Annotated[str | None, typer.Option(help="Column with the answer. Default: guessed.")] = None,
    evaluation: Annotated[
        Path | None, typer.Option("--eval", help="Held-out rows. Default: a quarter, from 40 rows on.")
    ] = None,
    answer_kind: Annotated[
        str | None, typer.Option(help="choice, number, exact or open. Default: guessed.", show_default=False)
    ] = None,
    large: Annotated[str | None, typer.Option(help="Model that writes principles: folder or hub id.")] = None,
    small: Annotated[str | None, typer.Option(help="Model that writes rows and is trained.")] = None,
    directory: Annotated[Path, typer.Option(help="Where to make the folder.")] = Path(),
) -> None:
    """Write a recipe folder for your own task."""
    from cluster.init import InitRequest, composed_recipe, init_recipe

    guided = (seeds, input_field, output_field, evaluation, answer_kind, large, small)
    if compose is not None and any(option is not None for option in guided):
        raise typer.BadParameter("--compose makes seeds and models its own; give no other option but --directory")
    if compose is not None:
        typer.echo(composed_recipe(name, compose, directory))
        return
    if seeds is None:
        raise typer.BadParameter("give your examples with --seeds, or a rule with --compose")
    request = InitRequest(
        name=name, seeds=seeds, evaluation=evaluation, input_field=input_field, output_field=output_field,
        answer_kind=answer_kind, large=large, small=small, directory=directory,
    )  # fmt: skip
    typer.echo(init_recipe(request))


@app.command(epilog="\b\nExample:\n  psi check mytask generation.accepted_rows=1000000")
def check(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Check a recipe and its data; estimate what it takes.

    Needs no GPU. All mistakes are listed at once; exit code 2 if there are any.
    """
    from cluster.check import check_recipe

    typer.echo(check_recipe(recipe, overrides or []))


@app.command(epilog="\b\nExamples:\n  psi run mytask --limit 50\n  psi run mytask pools.small.replicas=8")
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Preview: so many rows, no training, in a folder <output>-preview.", show_default=False
        ),
    ] = None,
) -> None:
    """Go the whole way, or resume it.

    Principles, rows, training, evaluation, report: what is there already is not done again.
    """
    from cluster.driver import run_all
    from cluster.recipe import load_recipe, preview_of

    loaded = load_recipe(recipe, overrides or [])
    if limit is None:
        run_all(loaded)
        return
    from cluster.show import show_run

    preview = preview_of(loaded, limit)
    run_all(preview, ("principles", "generate"))
    typer.echo(show_run(preview.recipe.run.output, rows=limit))


@app.command(epilog="\b\nExample:\n  psi compare mytask compare.training_seeds=5")
def compare(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Go the whole way with all arms of [compare], or resume it.

    The same run folder as `psi run`, more arms, several training seeds; ends with contrasts and their intervals in compare.md.
    """
    from cluster.driver import run_all
    from cluster.recipe import compared, load_recipe

    run_all(compared(load_recipe(recipe, overrides or [])), compares=True)


@app.command(epilog="\b\nExample:\n  psi show runs/mytask-preview")
def show(
    run_folder: Annotated[str, typer.Argument(metavar="RUN", help="Run folder: a path or an URI.")],
    rows: Annotated[int, typer.Option(min=0, help="Random rows to show.")] = 5,
    seed: Annotated[int, typer.Option(help="Which random rows.")] = 0,
) -> None:
    """Look into a run folder.

    Principles with scores, random rows, rejections by reason, throughput, energy.
    """
    from cluster.show import show_run

    typer.echo(show_run(run_folder, rows=rows, seed=seed))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `psi`: errors meant for the user end as one message on stderr and their exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given  # wherever it stands, as one adds it to a command that has just failed
    try:
        app(["--debug"] * debug + [word for word in given if word != "--debug"], prog_name="psi")
    except SystemExit as end:
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            typer.echo("\ninterrupted; nothing is lost, the same command resumes", err=True)
        raise
    except Exception as error:
        from generation.errors import PsiError

        if debug or not isinstance(error, PsiError):
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
