"""The checker finds what it shall find: each kind of damage, done by hand to a run that is well."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.generate import generate_arm
from tests.chaos.checker import check_run
from tests.cluster import fake_replicas as fake


@pytest.fixture
def run(tmp_path: Path) -> Path:
    generate_arm(
        fake.arm_run(tmp_path),
        lambda: fake.FakePool(fake.write_some(0.6), faults=0.2),
        lambda shown: None,
        fake.local_coordinator,
    )
    return tmp_path


def listing(run: Path, unit: str) -> tuple[Path, dict, int]:
    """The segment that lists a unit, its line, and the place of the shard in it."""
    for path in sorted(run.glob("manifest/*.jsonl")):
        line = json.loads(path.read_text())
        for number, (_, _, _, units) in enumerate(line.get("shards", [])):
            if any(each[0] == unit for each in units):
                return path, line, number
    raise AssertionError(unit)


def edit(run: Path, unit: str, change: Callable[[list], object]) -> None:
    path, line, number = listing(run, unit)
    change(line["shards"][number][3])
    path.write_text(json.dumps(line) + "\n")


def list_twice(run: Path) -> None:
    path, line, number = listing(run, "000000-000000")
    line["shards"].append(line["shards"][number])
    path.write_text(json.dumps(line) + "\n")


def list_half(run: Path) -> None:
    edit(run, "000000-000000", lambda units: units[0].__setitem__(2, units[0][2] - 1))


def list_another_units_rows(run: Path) -> None:
    edit(run, "000000-000001", lambda units: units[-1].__setitem__(0, "000000-000777"))


def bury(run: Path) -> None:
    path, line, _ = listing(run, "000000-000000")
    line["tombstones"]["000000-000000"] = "none"
    path.write_text(json.dumps(line) + "\n")


def lose_a_unit(run: Path) -> None:
    edit(run, "000000-000000", lambda units: units.clear())


def lose_a_shard(run: Path) -> None:
    _, line, number = listing(run, "000000-000000")
    (run / line["shards"][number][0]).unlink()


def cut_a_shard(run: Path) -> None:
    _, line, number = listing(run, "000000-000000")
    shard = run / line["shards"][number][0]
    shard.write_bytes(shard.read_bytes()[:-100])


def leave_half_a_shard(run: Path) -> None:
    (run / "rows/round-0/shard-x.arrow.tmp").write_bytes(b"half")


def lose_a_segment(run: Path) -> None:
    next(iter(sorted(run.glob("manifest/*-000002.jsonl")))).unlink()


def change_a_file_of_the_dataset(run: Path) -> None:
    import pyarrow.parquet as pq

    file = next(run.glob("dataset/round-0/*.parquet"))
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table.slice(0, len(table) - 2), table.slice(0, 1)]), file)


def test_a_run_with_dying_replicas_is_well(run: Path):
    assert check_run(run, "test", 60) == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (list_twice, "unit 000000-000000 is settled 2 times"),
        (list_half, "not the 8 of the plan"),
        (list_another_units_rows, "unit 000000-000777 is in the manifest and not in the plan"),
        (bury, "unit 000000-000000 is settled 2 times"),
        (lose_a_unit, "unit 000000-000000 is neither visible nor given up"),
        (lose_a_shard, "is listed and cannot be read"),
        (cut_a_shard, "is not what was listed"),
        (leave_half_a_shard, "shard-x.arrow.tmp is not finished"),
        (lose_a_segment, "segment 2 of incarnation 1 counts and is not there"),
        (change_a_file_of_the_dataset, "dataset: 59 rows of 'a', not 60"),
    ],
)
def test_damage_is_found(run: Path, damage: Callable[[Path], None], said: str):
    damage(run)
    found = check_run(run, "test", 60)
    assert any(said in violation for violation in found), found
