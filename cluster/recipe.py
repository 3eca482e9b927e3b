"""Recipes: one TOML a run, as frozen models, with every mistake reported at once.

Owns the sections that concern the whole system and the loading; the rest of a recipe belongs to `generation.config` and
`training.config`. Imports no engine, no Ray, no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from cluster.identity import RECORD, identity_of
from cluster.recipe_checks import find_mistakes, resolve_paths
from cluster.recipe_mistakes import describe
from cluster.recipe_source import read_source
from generation.arms import arm_spec, in_reading_order
from generation.config import (
    Count,
    CurationConfig,
    GenerationConfig,
    PrinciplesConfig,
    Section,
    TaskConfig,
)
from generation.energy_config import EnergyConfig
from generation.engines.config import PoolConfig
from generation.errors import PrivacyError, RecipeError
from generation.prompts.prompt_set import DEFAULT_SET
from generation.run_config import CompareConfig, EvaluationConfig, LimitsConfig
from generation.storage import Store, digest, json_bytes
from generation.task import Task
from generation.uris import beside
from training.config import TrainingConfig

PREVIEW_FLOWS_PER_UNIT = 32
"""Larger units would write many more rows than a preview wants."""


class RunConfig(Section):
    """What the run is called and where it is kept."""

    operations = frozenset({"description", "output", "scratch"})

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$")]
    """Part of every row's id."""
    description: str = ""
    """For the reader of the report."""
    output: str = ""
    """Run folder: a path on a local or mounted filesystem, relative to where the command is started, or `s3://` or `gs://` (then `psi[s3]`
    or `psi[gcs]`, credentials from the usual places). Default: `runs/<name>`."""
    scratch: str = ""
    """Folder on disk, shared by all nodes that train, for training state and models on their way. Default: `<output>/scratch`; needed with a bucket."""
    seed: int = 0


class PoolsConfig(Section):
    """The engines, by stage."""

    large: PoolConfig | None = None
    """Writes principles. Not needed with `principles.from`, nor by the arms base and direct."""
    small: PoolConfig
    """Writes instances; the model that is trained."""


class ClusterConfig(Section):
    """The machines, and how their work is handed out."""

    operations = frozenset(
        {"address", "placement", "lease_seconds", "drain_seconds", "max_replica_restarts", "local_cpus"}
    )

    address: str | None = None
    """A running Ray cluster (`auto`, `host:port`, `ray://host:port`). Default: a local one for this run."""
    placement: Literal["side-by-side", "turns"] = "side-by-side"
    """Whether the pools hold their devices at the same time or one after the other."""
    lease_seconds: Annotated[float, Field(gt=0)] = 600.0
    """A unit that is not committed by then is handed to another replica."""
    drain_seconds: Annotated[float, Field(gt=0)] = 20.0
    """How long a replica whose node goes away may take to leave. Kubernetes and Slurm kill about 30 s after they warn."""
    max_replica_restarts: Annotated[int, Field(ge=0)] | None = None
    """Engines of a pool that may die within an hour, with nothing committed in between, before the run gives up. Replicas that go with
    their node do not count. Default: 5, or the number of replicas where that is more."""
    local_cpus: Count | None = None
    """CPUs that a local cluster offers. Default: those of the machine."""


class Recipe(Section):
    """A whole run."""

    run: RunConfig
    tasks: tuple[TaskConfig, ...]
    """At least one, each under a name of its own."""
    prompts: str = DEFAULT_SET
    """The default prompt set, or a folder beside the recipe."""
    pools: PoolsConfig
    principles: PrinciplesConfig = PrinciplesConfig()
    generation: GenerationConfig
    curation: CurationConfig = CurationConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compare: CompareConfig = CompareConfig()
    energy: EnergyConfig = EnergyConfig()
    limits: LimitsConfig = LimitsConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def needs_principles(self) -> bool:
        """Whether an arm works with principles of the large model, or with something made from them."""
        return any(arm_spec(arm).principles not in {"none", "small-written"} for arm in self.generation.arms)

    @property
    def needs_large(self) -> bool:
        """Whether the large model has anything to do: to find principles that no file holds, or to write rows."""
        finds = self.needs_principles and self.principles.from_file is None
        return finds or any(arm_spec(arm).writer == "large" for arm in self.generation.arms)


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that holds together.

    Attributes:
        recipe: With absolute paths; models that are not folders are hub ids.
        folder: Where its file lies.
    """

    recipe: Recipe
    folder: Path

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Dotted key to value of all that decides what the run is; files and weights by digest. Reads the weights once."""
        return identity_of(self.recipe)

    @cached_property
    def identity_hash(self) -> str:
        """blake2b-128 of the identity, hex."""
        return digest(json_bytes(self.identity).decode())


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe, apply `section.field=value` overrides, and check all that can be checked without opening its data.

    Args:
        path: The TOML file, or a folder that holds `recipe.toml`.
        overrides: Later ones win. List items go by number or, for tasks, by name: `tasks.0.max_seeds=20`.

    Raises:
        RecipeError: It has mistakes; the message lists all of them.
        PrivacyError: A private task would be sent to an endpoint that it does not allow (listed beside other mistakes).
    """
    file = Path(path) / "recipe.toml" if Path(path).is_dir() else Path(path)
    source = read_source(file, overrides)
    try:
        recipe = Recipe.model_validate(source.values)
    except ValidationError as error:
        raise RecipeError(_listing(file, [*source.mistakes, *describe(error, Recipe, source.values)])) from error
    folder = file.parent.absolute()
    values, unresolved = resolve_paths(recipe, folder)
    recipe = Recipe.model_validate(values)
    mistakes, leaks = find_mistakes(recipe, folder)
    mistakes = [*source.mistakes, *unresolved, *mistakes, *leaks]
    if mistakes:
        raise (PrivacyError if leaks else RecipeError)(_listing(file, mistakes))
    return LoadedRecipe(recipe, folder)


def compared(loaded: LoadedRecipe) -> LoadedRecipe:
    """The same recipe with the arms of `[compare]` beside its own.

    Raises:
        RecipeError: An arm lacks what it needs.
    """
    recipe = loaded.recipe
    arms = tuple(in_reading_order([*recipe.generation.arms, *recipe.compare.arms]))
    generation = recipe.generation.model_copy(update={"arms": arms})
    wider = LoadedRecipe(recipe.model_copy(update={"generation": generation}), loaded.folder)
    mistakes, leaks = find_mistakes(wider.recipe, loaded.folder)
    if mistakes or leaks:
        raise (PrivacyError if leaks else RecipeError)(_listing(loaded.folder, [*mistakes, *leaks]))
    return wider


def preview_of(loaded: LoadedRecipe, rows: int) -> LoadedRecipe:
    """The same recipe with so many rows per task, the psi arm only, and a run folder of its own.

    That is `<output>-preview`, or one with a suffix where that holds the preview of a recipe that has been changed since. A preview of
    fewer rows than it holds keeps them.

    Raises:
        RecipeError: The recipe has nothing to write principles with.
    """
    preview = _preview_in(loaded, rows, "preview")
    record = _record_of(preview)
    if record and record["identity_hash"] != preview.identity_hash:
        preview = _preview_in(loaded, rows, f"preview-{preview.identity_hash[:8]}")
        record = _record_of(preview)
    kept = record["recipe"]["generation"]["accepted_rows"] if record else rows
    if kept > rows:
        generation = preview.recipe.generation.model_copy(update={"accepted_rows": kept})
        preview = replace(preview, recipe=preview.recipe.model_copy(update={"generation": generation}))
    mistakes, _ = find_mistakes(preview.recipe, loaded.folder)
    if mistakes:
        raise RecipeError(_listing(loaded.folder, mistakes))
    return preview


def _preview_in(loaded: LoadedRecipe, rows: int, suffix: str) -> LoadedRecipe:
    run, generation = loaded.recipe.run, loaded.recipe.generation
    # The same for every number of rows, so that a preview may grow.
    flows = min(generation.flows_per_unit, PREVIEW_FLOWS_PER_UNIT)
    output = beside(run.output, f"-{suffix}")
    within = run.scratch.rstrip("/") == f"{run.output.rstrip('/')}/scratch"
    scratch = f"{output}/scratch" if within else f"{run.scratch}-{suffix}"
    changes = {
        "run": run.model_copy(update={"output": output, "scratch": scratch}),
        "generation": generation.model_copy(update={"accepted_rows": rows, "arms": ("psi",), "flows_per_unit": flows}),
    }
    return LoadedRecipe(loaded.recipe.model_copy(update=changes), loaded.folder)


def _record_of(loaded: LoadedRecipe) -> dict[str, Any] | None:
    """`recipe.json` of a run folder that exists."""
    store = Store(loaded.recipe.run.output)
    return store.read_json(RECORD) if store.exists(RECORD) else None


def load_tasks(loaded: LoadedRecipe) -> list[Task]:
    """The recipe's tasks with their seeds, read, checked and split.

    Raises:
        SeedError: Rows are wrong; the message lists them for all tasks.
    """
    # pyarrow, which reads the seeds, takes longer to import than a recipe to load.
    from generation.seeds import load_tasks as load

    return load(loaded.recipe.tasks)


def _listing(path: Path, mistakes: Sequence[str]) -> str:
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    return f"{path}: {count}:\n" + "\n".join(f"  {mistake}" for mistake in mistakes)
