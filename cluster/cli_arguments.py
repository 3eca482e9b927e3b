"""What several `psi` commands take."""

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="TOML file, or a folder with recipe.toml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.field=value]...", help="Values to set for this command.", show_default=False),
]
