"""Loads the function that knows true answers, where a recipe names one. It measures labels and never decides on a row."""

import importlib.util
from pathlib import Path

from generation.answers import answers_equal
from generation.dataset import Oracle
from generation.errors import RecipeError


def load_oracle(spec: str | None, folder: Path) -> Oracle | None:
    """The oracle that `evaluation.oracle` names as `file.py:function`, or None.

    Args:
        spec: As in the recipe; the file is relative to `folder`.
        folder: The recipe's.

    Raises:
        RecipeError: The file or the function is not there, or the file cannot be loaded.
    """
    if spec is None:
        return None
    file, _, name = spec.partition(":")
    path = folder / file
    loader = importlib.util.spec_from_file_location("psi_recipe_oracle", path)
    if loader is None or loader.loader is None or not path.is_file():
        raise RecipeError(f"evaluation.oracle: {path}: no such Python file; write `file.py:function`")
    module = importlib.util.module_from_spec(loader)
    try:
        loader.loader.exec_module(module)
        return Oracle(truth=getattr(module, name), equal=answers_equal)
    except (ImportError, SyntaxError, AttributeError) as error:
        raise RecipeError(f"evaluation.oracle: {spec}: {type(error).__name__}: {error}") from error
