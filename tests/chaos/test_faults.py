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
ROWS, UNITS, FEW_ROWS = 900, 500, 90
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


def test_units_whose_commit_was_not_answered_are_committed_again_and_count_once(tmp_path: Path, nodes: Nodes):
    story = planted(tmp_path, nodes, "loses-an-answer", [])
    assert story.tell() == 0, story.said()
    assert check_run(story.folder, RUN_ID, FEW_ROWS, story.history) == []
    assert {path.name for path in (story.folder / "manifest").glob("incarnation-*")} >= {
        "incarnation-000001.json",
        "incarnation-000002.json",
    }


@pytest.mark.parametrize(
    ("mistake", "kinds", "said"),
    [
        ("lists-again", [], "settled 2 times"),
        ("lists-half", ["replica killed"], "the 1 rows there are not the 2 of the plan"),
    ],
)
def test_a_planted_mistake_in_the_commit_rule_is_found(
    tmp_path: Path, nodes: Nodes, mistake: str, kinds: list[str], said: str
):
    story = planted(tmp_path, nodes, mistake, [Fault(10, kind, 0.5) for kind in kinds])
    story.tell()
    found = check_run(story.folder, RUN_ID, FEW_ROWS, story.history)
    assert any(said in violation for violation in found), found


def planted(folder: Path, nodes: Nodes, mistake: str, faults: list[Fault]) -> Story:
    """A short run whose coordinator is one of `tests.chaos.bugs`."""
    recipe, run = scripted_recipe(folder, FEW_ROWS, seconds_per_step=STEP_SECONDS), folder / "run"
    psi = [sys.executable, "-m", "tests.chaos.bugs", mistake]
    return Story(nodes, run, psi_command(recipe, nodes.address, run, psi=psi), faults)
