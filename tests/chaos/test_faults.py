"""Short stories: a few faults each, on real Ray nodes. The long ones are in `test_long.py`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.checker import check_run
from tests.chaos.disk import own_disk
from tests.chaos.faults import KINDS, Fault, draw_faults
from tests.chaos.nodes import Nodes, ray_nodes
from tests.chaos.recipes import RUN_ID, psi_command, scripted_recipe
from tests.chaos.story import Story

SEED = 1
ROWS, UNITS = 900, 500
STEP_SECONDS = 0.3
"""With two steps a flow and 16 flows in each of four replicas, 50 units a second at best."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with ray_nodes(workers=2, cpus=3) as nodes:
        yield nodes


def test_a_run_to_which_something_of_each_kind_happens_has_exactly_its_rows(tmp_path: Path, nodes: Nodes):
    recipe = scripted_recipe(tmp_path, ROWS, seconds_per_step=STEP_SECONDS)
    with own_disk(tmp_path / "run") as disk:
        kinds = [kind for kind in KINDS if kind != "disk full" or disk]
        faults = draw_faults(SEED, UNITS, len(kinds), kinds)
        story = Story(nodes, tmp_path / "run", psi_command(recipe, nodes.address, tmp_path / "run"), faults, disk)
        assert story.tell() == 0, story.said()
        assert check_run(tmp_path / "run", RUN_ID, ROWS, story.history) == []
    assert story.refused == 1


@pytest.mark.parametrize(
    ("mistake", "rows", "kinds", "said"),
    [
        ("lists-again", 90, [], "settled 2 times"),
        ("lists-half", 90, ["replica killed"], "the 1 rows there are not the 2 of the plan"),
    ],
)
def test_a_planted_mistake_in_the_commit_rule_is_found(
    tmp_path: Path, nodes: Nodes, mistake: str, rows: int, kinds: list[str], said: str
):
    recipe, run = scripted_recipe(tmp_path, rows, seconds_per_step=STEP_SECONDS), tmp_path / "run"
    faults = [Fault(10 + 30 * number, kind, 0.5) for number, kind in enumerate(kinds)]
    psi = [sys.executable, "-m", "tests.chaos.bugs", mistake]
    story = Story(nodes, run, psi_command(recipe, nodes.address, run, psi=psi), faults)
    story.tell()
    found = check_run(run, RUN_ID, rows, story.history)
    assert any(said in violation for violation in found), found
