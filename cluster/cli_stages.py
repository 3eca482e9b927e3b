"""The `psi` commands that do one stage of a run. Every import that takes time stands inside a command."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli_arguments import Overrides, RecipeArgument

app = typer.Typer()


@app.command()
def principles(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Stage 1 alone: find principles."""
    _stage("principles", recipe, overrides)


@app.command()
def generate(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Stage 2 alone: write and curate rows.

    Finds principles first where there are none.
    """
    _stage("generate", recipe, overrides)


@app.command(
    epilog="\b\nWithout Ray:\n  psi train mytask --jobs jobs\n  torchrun ... -m training.loop jobs/psi.json     on every node\n"
    "  psi train mytask                              checks and publishes the model"
)
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    jobs: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Only write the jobs there, for torchrun.", show_default=False),
    ] = None,
) -> None:
    """Stage 3 alone: train on the rows.

    Waits for the dataset up to training.dataset_deadline_seconds.
    """
    if jobs is None:
        _stage("train", recipe, overrides)
        return
    from cluster.driver import write_jobs
    from cluster.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    for path in write_jobs(loaded, jobs):
        typer.echo(f"torchrun --nproc-per-node {loaded.recipe.training.ranks} -m training.loop {path}")


@app.command()
def evaluate(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Stage 4 alone: score base and trained models."""
    _stage("evaluate", recipe, overrides)


@app.command()
def report(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Stage 5 alone: report.json and report.html."""
    _stage("report", recipe, overrides)


def _stage(name: str, recipe: Path, overrides: list[str] | None) -> None:
    from cluster.driver import run_all
    from cluster.recipe import load_recipe

    run_all(load_recipe(recipe, overrides or []), (name,))
