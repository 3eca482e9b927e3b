"""Recipes whose run folder is in a bucket."""

from pathlib import Path

import pytest

from cluster.identity import check_against_run
from cluster.recipe import load_recipe, preview_of
from generation.errors import RecipeError
from generation.storage import Store
from tests.end_to_end.live_run import ROOT

MINIATURE = ROOT / "recipes/miniature/recipe.toml"


def test_a_run_in_a_bucket_needs_a_local_scratch_and_no_credentials():
    with pytest.raises(RecipeError, match=r"run.scratch: is missing; name a local folder .* beside s3://bucket/run"):
        load_recipe(MINIATURE, ["run.output=s3://bucket/run"])
    with pytest.raises(RecipeError, match=r"run.scratch: s3://bucket/scratch; name a local folder"):
        load_recipe(MINIATURE, ["run.output=s3://bucket/run", "run.scratch=s3://bucket/scratch"])
    with pytest.raises(RecipeError, match=r"run.output: s3://\*\*\*@bucket/run holds credentials") as refused:
        load_recipe(MINIATURE, ["run.output=s3://key:verysecret@bucket/run", "run.scratch=/scratch"])
    assert "verysecret" not in str(refused.value)
    with pytest.raises(RecipeError, match=r"run.scratch: s3://\*\*\*@bucket/scratch; name a local folder"):
        load_recipe(MINIATURE, ["run.output=s3://bucket/run", "run.scratch=s3://key:verysecret@bucket/scratch"])


def test_a_recipe_cannot_have_a_model_folder_replaced_by_a_copy():
    with pytest.raises(RecipeError, match=r"pools.small.engine.*copied_from.* is not for recipes"):
        load_recipe(MINIATURE, ["pools.small.engine.copied_from=s3://bucket/model"])


def test_a_preview_lies_beside_its_run_in_the_bucket_and_grows_there(uri: str, tmp_path: Path):
    loaded = load_recipe(MINIATURE, [f"run.output={uri}", f"run.scratch={tmp_path}"])
    preview = preview_of(loaded, 50)
    assert preview.recipe.run.output == uri.replace("?", "-preview?")
    assert preview.recipe.run.scratch == f"{tmp_path}-preview"
    check_against_run(Store(preview.recipe.run.output), preview)
    assert preview_of(loaded, 20).recipe.generation.accepted_rows == 50
