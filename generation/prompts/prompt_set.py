"""A prompt set: a folder of Jinja templates and `patterns.toml`, named by the recipe. The default is `chat`.

Templates (all get `task`, the `Task`):
    draft_prefix    principles, demonstrations -> start of a draft prompt, the same bytes for a whole bundle
    draft_text      difficulty, context, label -> its end
    answer_prefix   principles, demonstrations -> start of an answer prompt, the same bytes for a whole bundle
    answer_text     input                      -> its end
    student         input                      -> the user message that the trained model sees: no principle, no demonstration
    student_answer  answer, rationale          -> the assistant message that it is trained to give
    round_trip_text  input, answer, gap        -> optional: asks for what is hidden in an input (`generation.round_trip`)
    mine_*          seeds, mistakes, max_principles, level -> a prompt of the large model, one per level
    cause           mistake                    -> optional: asks it why the small model is wrong, for the clusters of evidence `errors`
    rewrite_group   principles                 -> optional: asks it for one principle in place of those that say the same
    contradict      first, second              -> optional: asks it whether two principles contradict each other

`patterns.toml`: regular expressions (DOTALL) `input`, `answer`, `used`, `principle`; each has named groups as below.
    input      (?P<input>...)      the drafted input in a draft completion
    answer     (?P<answer>...)     the answer in an answer completion; the last match counts
    used       (?P<ids>...)        optional: principle numbers that a draft cites, stripped before anything else
    citation                       optional: a mention of a principle by its number; not wanted in inputs, stripped from rationales
    cause      (?P<cause>...)      with the template `cause`
    verdict    (?P<verdict>...)    with the template `contradict`: yes, or anything else
    principle  (?P<text>...) and optionally (?P<kind>...), (?P<when>...), (?P<support>...): one match per principle
"""

import re
import tomllib
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, TemplateError

from generation.errors import RecipeError
from generation.storage import digest

DEFAULT_SET = "chat"


class _Environment(Environment):
    def make_globals(self, d: MutableMapping[str, Any] | None) -> MutableMapping[str, Any]:
        """A plain dict: each rendering copies it, and half of its time went into copying Jinja's own `ChainMap`."""
        return {**self.globals, **(d or {})}


@dataclass(frozen=True)
class PromptSet:
    """A loaded prompt set. Pickles as its folder.

    Attributes:
        folder: Where its files are.
    """

    folder: str

    def render(self, template: str, **values: Any) -> str:
        """Render a template by its name without `.jinja`.

        Raises:
            RecipeError: The template is missing or uses a value that it is not given.
        """
        try:
            return self._template(template).render(**values)
        except TemplateError as error:
            raise RecipeError(f"prompt set {self.folder}: {template}.jinja: {type(error).__name__}: {error}") from error

    def has_template(self, name: str) -> bool:
        """Whether an optional template is there."""
        return (Path(self.folder) / f"{name}.jinja").is_file()

    def pattern(self, name: str) -> re.Pattern[str]:
        """A compiled pattern.

        Raises:
            RecipeError: It is missing.
        """
        if name not in self._patterns:
            raise RecipeError(f"prompt set {self.folder}: patterns.toml has no '{name}'")
        return self._patterns[name]

    def has_pattern(self, name: str) -> bool:
        """Whether an optional pattern is there."""
        return name in self._patterns

    @cached_property
    def digest(self) -> str:
        """Digest of all its files: part of a run's identity."""
        files = sorted(path for path in Path(self.folder).iterdir() if path.suffix in {".jinja", ".toml"})
        return digest(*(part for path in files for part in (path.name, path.read_text(encoding="utf-8"))))

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def _template(self, name: str) -> Template:
        known = self._templates.get(name)
        if known is None:
            known = self._templates[name] = self._environment.get_template(f"{name}.jinja")
        return known

    @cached_property
    def _templates(self) -> dict[str, Template]:
        return {}

    @cached_property
    def _environment(self) -> Environment:
        return _Environment(
            loader=FileSystemLoader(self.folder),
            undefined=StrictUndefined,
            auto_reload=False,  # a look at the file for each prompt, which a shared filesystem makes slow
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
        )

    @cached_property
    def _patterns(self) -> dict[str, re.Pattern[str]]:
        path = Path(self.folder) / "patterns.toml"
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
            return {name: re.compile(text, re.DOTALL) for name, text in values.items()}
        except (OSError, tomllib.TOMLDecodeError, re.error) as error:
            raise RecipeError(f"prompt set {path}: {error}") from error


def load_prompt_set(name: str, recipe_folder: Path) -> PromptSet:
    """The default set `chat`, or the folder that the recipe names.

    Raises:
        RecipeError: There is no such folder.
    """
    folder = Path(__file__).parent / name if name == DEFAULT_SET else recipe_folder / name
    if not (folder / "patterns.toml").is_file():
        raise RecipeError(f"prompts: {folder} holds no patterns.toml; name '{DEFAULT_SET}' or a folder of your own")
    return PromptSet(str(folder))
