"""A task of your own in the miniature's world: `psi init NAME --compose "sort; shift up; reverse"`.

Writes a recipe folder that is the miniature's with one task, whose rule is the given composition; models and prompts are the
miniature's own. Also `python -m recipes.miniature.compose NAME "sort; shift up; reverse"`.
"""

import argparse
import itertools
import json
import re
import shutil
from pathlib import Path

from cluster.init import new_folder
from cluster.recipe import load_recipe
from generation.errors import PsiError, RecipeError
from recipes.miniature.make_tasks import FOLDER, Row, draw_rows, write_rows
from recipes.miniature.world import FUNCTIONS, SPLIT, Rule, meaning

MAX_DEPTH = 3
"""Longer compositions were in no pretraining document, so that the small model follows none of them."""
HEAD = """# The miniature's recipe for one task of its own. Its rule, which no model is told: {rule}

prompts = {prompts}

[run]
name = "{name}"
description = "A composition of functions in the miniature's formal language."
output = "runs/{name}"

[[tasks]]
name = "{name}"
description = "task {name}"
seeds = "seeds.jsonl"
evaluation = "evaluation.jsonl"
fields = {{ rationale = "steps" }}
answer = {{ kind = "exact" }}

"""
ORACLE = '''"""The true answers of the task {name}: {text}."""

import sys

sys.path.append({root})  # the checkout of PSI that this folder was made with

from recipes.miniature.world import apply

RULE = {rule}


def oracle(task: str, text: str) -> str:
    """What the rule makes of `text`: `evaluation.oracle` of the recipe."""
    return apply(RULE, text)
'''


def compose(name: str, text: str, directory: Path) -> str:
    """Write the folder `directory/name`; returns what to tell the user.

    Raises:
        RecipeError: The folder exists, or `text` is no composition of one to three functions that changes words.
    """
    rule = read_rule(text)
    folder = new_folder(directory, name)
    seeds, evaluation = draw_rows(rule, f"{name} {'; '.join(rule)}")
    try:
        write_rows(folder / "seeds.jsonl", seeds)
        write_rows(folder / "evaluation.jsonl", evaluation)
        (folder / "oracle.py").write_text(_oracle(name, rule), encoding="utf-8")
        (folder / "recipe.toml").write_text(_recipe(name, rule), encoding="utf-8")
        load_recipe(folder)
    except BaseException:
        shutil.rmtree(folder)
        raise
    return _farewell(folder, rule, seeds, len(evaluation))


def read_rule(text: str) -> Rule:
    """`"sort; shift up"` as a rule.

    Raises:
        RecipeError: It names something else than one to three known functions, or leaves every word as it is.
    """
    rule = tuple(" ".join(part.lower().split()) for part in text.split(";"))
    unknown = [f"'{name}'" for name in rule if name not in FUNCTIONS]
    if unknown:
        raise RecipeError(
            f"--compose: there is no function {', '.join(unknown)}; write up to {MAX_DEPTH} of these with ; between them: "
            + ", ".join(FUNCTIONS)
        )
    if len(rule) > MAX_DEPTH:
        raise RecipeError(
            f"--compose: {len(rule)} functions; the models know compositions of up to {MAX_DEPTH}, write fewer"
        )
    if meaning(rule) == meaning(("reverse", "reverse")):
        raise RecipeError(f"--compose: '{'; '.join(rule)}' leaves every word as it is; write one that changes words")
    return rule


def seen_as(rule: Rule) -> Rule | None:
    """The shortest rule of the pretraining documents that computes the same, or None where no document shows what `rule` does."""
    wanted = meaning(rule)
    return next((seen for seen in (*SPLIT.singles, *SPLIT.pairs, *SPLIT.triples) if meaning(seen) == wanted), None)


def _recipe(name: str, rule: Rule) -> str:
    """The miniature's recipe with another head: this task alone, and paths that hold from anywhere."""
    source = (FOLDER / "recipe.toml").read_text(encoding="utf-8")
    _, _, rest = source.rpartition("[[tasks]]\n")
    _, _, rest = rest.partition("\n\n")
    rest = re.sub(r'(?m)^model = "(.+)"$', lambda line: f"model = {json.dumps(str(FOLDER / line[1]))}", rest)
    rest = re.sub(r'(?m)^oracle = ".+"$', 'oracle = "oracle.py:oracle"', rest)
    return HEAD.format(rule="; ".join(rule), prompts=json.dumps(str(FOLDER / "prompts")), name=name) + rest


def _oracle(name: str, rule: Rule) -> str:
    return ORACLE.format(name=name, text="; ".join(rule), root=repr(str(FOLDER.parents[1])), rule=rule)


def _farewell(folder: Path, rule: Rule, seeds: list[Row], num_evaluation: int) -> str:
    seen = seen_as(rule)
    hidden = [f"'{'; '.join(pair)}' is in none" for pair in itertools.pairwise(rule) if pair in SPLIT.held_out]
    if seen:
        known = "saw this rule" if seen == rule else f"saw this as '{'; '.join(seen)}', which computes the same"
    else:
        known = ", ".join(["no document computes this", *hidden])
    return f"""wrote {folder}/recipe.toml
  rule        {"; ".join(rule)}
  pretraining {known}
  example     {seeds[0]["input"]}>{seeds[0]["steps"]}
  rows        {len(seeds)} seeds, {num_evaluation} for evaluation, true answers from oracle.py
Then:
  psi check {folder}
  psi run {folder}"""


def main() -> None:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("rule", help="such as 'sort; shift up; reverse'")
    parser.add_argument("--directory", type=Path, default=Path())
    arguments = parser.parse_args()
    try:
        print(compose(arguments.name, arguments.rule, arguments.directory))
    except PsiError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
