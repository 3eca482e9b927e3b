import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest
import ray

from cluster.arm import ArmFold
from cluster.coordinator_link import ActorLink
from cluster.generate import generate_arm
from cluster.ledger import MAX_UNITS_PER_LEASE
from cluster.protocol import PrefixAnswer
from generation.dataset import Oracle
from generation.errors import BudgetError, GaveUpError, RunLockedError, StorageError, YieldError
from generation.instances.plan import PlanRecord
from generation.instances.plan_log import log_records, read_records
from generation.manifest import replay
from generation.rows import Row, row_id
from generation.storage import Store, digest
from tests.cluster import fake_replicas as fake


def generate(run, pool, shown=None):
    shown = [] if shown is None else shown
    return generate_arm(run, lambda: pool, shown.append, fake.local_coordinator)


def no_pool():
    raise AssertionError("the pool was asked for")


def dataset_rows(run) -> list[dict]:
    files = sorted(Path(run.store.path("dataset/round-0")).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_every_task_ends_with_exactly_its_rows_and_says_how_it_went(tmp_path):
    run, shown = fake.arm_run(tmp_path, "ab"), []
    result = generate(run, fake.FakePool(fake.write_some(0.6)), shown)
    rows = dataset_rows(run)
    assert Counter(row["task"] for row in rows) == {"a": 60, "b": 60} == result.accepted
    assert len({row["row_id"] for row in rows}) == 120
    assert [row["unit"] for row in rows if row["task"] == "a"] == sorted(r["unit"] for r in rows if r["task"] == "a")
    assert result.overshoot["a"] == result.stages["a"]["overshoot"]["reasons"].get("beyond the target", 0)
    assert result.tokens["draft"]["output_tokens"] == 10 * sum(
        len(list(r.units())) * 8 for r in read_records(run.store)
    )
    assert (shown[-1].done, shown[-1].target) == (120, 120)
    lines = [line for name in run.store.names("metrics") for line in run.store.read_lines(f"metrics/{name}")]
    assert lines[-1]["accepted"] == {"a": 60, "b": 60}
    assert lines[-1]["stage"] == "generate-psi"


def test_dying_and_repeating_replicas_change_nothing_about_that(tmp_path):
    run, pool = fake.arm_run(tmp_path), fake.FakePool(fake.write_some(0.5), replicas=4, faults=0.3)
    run.store.write_new("rows/round-0/shard-dead-000000.arrow", b"of a replica that died before it could commit")
    result = generate(run, pool)
    rows = dataset_rows(run)
    assert pool.started > 4
    assert result.swept.files >= 1
    assert {f"rows/round-0/{name}" for name in run.store.names("rows/round-0")} == set(replay(run.store).state.shards)
    assert len(rows) == len({row["row_id"] for row in rows}) == 60


def test_a_driver_that_was_succeeded_while_it_stood_still_seals_nothing(tmp_path):
    def confirm() -> None:
        raise RunLockedError("taken over")

    run = replace(fake.arm_run(tmp_path), confirm=confirm)
    with pytest.raises(RunLockedError):
        generate(run, fake.FakePool(fake.write_some(0.6)))
    assert run.store.names("dataset/round-0") == []


def test_a_killed_driver_is_succeeded_by_one_that_ends_with_the_same_rows_as_a_fold_of_everything(tmp_path):
    run = fake.arm_run(tmp_path, "ab", generation={"accepted_rows": 150})
    for ticks in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            generate(run, fake.FakePool(fake.write_some(0.3), replicas=1, faults=0.2, ticks=ticks))
    before = replay(run.store).state.places
    first = generate(run, fake.FakePool(fake.write_some(0.3)))
    after = replay(run.store).state.places
    assert before.items() <= after.items()
    shutil.rmtree(tmp_path / "dataset")
    again = generate_arm(run, no_pool, print, fake.local_coordinator)
    assert again.dataset.digest == first.dataset.digest
    assert again.overshoot == first.overshoot


def test_one_worker_and_many_that_die_write_the_same_dataset_from_the_same_plan(tmp_path):
    def write(plan, record):
        rng = Random(f"{plan.unit} {plan.index}")
        base = (row_id("test", plan.unit, plan.index), plan.unit, plan.index, record.task)
        if rng.random() < 0.3:
            return Row(*base, "rejection", "parse", "no input tag")
        return Row(*base, "instance", input=f"w{rng.randrange(90)}", answer="yes", cell=plan.cell.cell_id)

    digests = set()
    for replicas, faults in ((1, 0.0), (4, 0.3)):
        run = fake.arm_run(tmp_path / f"{replicas}-{faults}")
        kinds = run.work[0].kinds
        log_records(run.store, [
            PlanRecord(i, "a", 0, *kinds[i % 3], 10, 8, (80,)) for i in range(4)
        ])  # fmt: skip
        result = generate(run, fake.FakePool(write, replicas=replicas, faults=faults))
        digests.add(result.dataset.digest)
        assert result.stages["a"]["exact_duplicate"]["reasons"]
    assert len(digests) == 1


def write_from(repeating: frozenset[str]):
    """Writes a new input in any cell but those: they know one alone. The first answer is false in one row of four."""

    def write(plan, record):
        base = (row_id("test", plan.unit, plan.index), plan.unit, plan.index, record.task)
        text = "same" if plan.cell.cell_id in repeating else digest(plan.unit, str(plan.index))[:12]
        first = "no" if Random(f"{plan.unit} {plan.index}").random() < 0.25 else "yes"
        return Row(*base, "instance", input=text, answer="yes", first_answer=first, cell=plan.cell.cell_id)

    return write


def test_a_cell_that_repeats_itself_gets_no_more_work_and_the_others_fill_the_dataset(tmp_path):
    run = fake.arm_run(tmp_path, generation={"accepted_rows": 500, "novelty_flows": 64})
    generate(run, fake.FakePool(write_from(frozenset({"c1"})), replicas=1))
    records = read_records(run.store)
    flows = Counter()
    for record in records:
        flows.update({cell.cell_id: n for cell, n in zip(record.cells, record.cell_flows, strict=True)})
    assert flows["c1"] < (flows["c0"] + flows["c2"]) / 4
    fold = ArmFold(run)
    fold.replay()
    assert fold.tasks["a"].spent_cells() == "1 of 3 cells are spent: less than 5% of what they write is new; 2 are open"
    last = [record for record in records if record.index > records[-1].index * 3 // 4]
    assert all(cell.cell_id != "c1" for record in last for cell in record.cells)


def test_a_run_whose_cells_have_nothing_new_to_write_ends_and_says_so(tmp_path):
    run = fake.arm_run(tmp_path, generation={"accepted_rows": 100, "novelty_flows": 32, "patience_units": 24})
    with pytest.raises(YieldError, match=r"same input as an earlier row.*\n3 of 3 cells are spent: .* nothing is left"):
        generate(run, fake.FakePool(write_from(frozenset({"c0", "c1", "c2"}))))


def test_the_summary_tells_how_many_labels_are_true_before_and_after_the_vote(tmp_path):
    run = fake.arm_run(tmp_path, "ab")
    oracle = Oracle(lambda task, text: "yes" if task == "a" else None, lambda _, one, other: one == other)
    generate(replace(run, oracle=oracle), fake.FakePool(write_from(frozenset())))
    summary = run.store.read_json("dataset/round-0/summary.json")
    for facts in (summary, summary["tasks"]["a"]):
        assert (facts["label_accuracy"], facts["label_checked"]) == (1.0, 60)
        assert 0.5 < facts["label_accuracy_first"] < 0.95
        assert facts["label_checked_first"] >= 60
    assert summary["tasks"]["b"]["label_accuracy_first"] is None
    assert 0 < summary["tasks"]["a"]["cell_entropy_bits"] <= 1.585


def test_the_temperature_of_drafts_follows_the_pool_and_is_logged(tmp_path):
    run = fake.arm_run(tmp_path, generation={"accepted_rows": 100, "draft_ramp": (0.7, 1.0)})
    generate(run, fake.FakePool(fake.write_some(0.6)))
    drawn = [record.draft_temperature for record in read_records(run.store)]
    assert drawn[0] == 0.7
    assert drawn == sorted(drawn)
    assert drawn[-1] > 0.7


def test_a_target_that_grows_keeps_the_rows_that_were_there(tmp_path):
    generate(fake.arm_run(tmp_path), fake.FakePool(fake.write_some(0.6)))
    small = [row["row_id"] for row in dataset_rows(fake.arm_run(tmp_path))]
    run = fake.arm_run(tmp_path, generation={"accepted_rows": 200})
    generate(run, fake.FakePool(fake.write_some(0.6)))
    grown = [row["row_id"] for row in dataset_rows(run)]
    assert len(set(grown)) == 200
    assert grown[:60] == small


@pytest.mark.parametrize(("yields", "seed"), [(0.06, 1), (0.5, 3), (1.0, 4), (1.0, 5)])
def test_overshoot_is_at_most_two_leases_a_replica(tmp_path, yields: float, seed: int):
    run = fake.arm_run(tmp_path, "ab", generation={"accepted_rows": 20 * seed, "min_yield": 0.0})
    result = generate(run, fake.FakePool(fake.write_some(yields), replicas=2, faults=0.1))
    assert sum(result.overshoot.values()) <= 2 * MAX_UNITS_PER_LEASE * 8 * run.pool.replicas


def write_in_cells(yields: dict[str, float]):
    """Writes new inputs, as often as its cell yields any."""

    def write(plan, record):
        base = (row_id("test", plan.unit, plan.index), plan.unit, plan.index, record.task)
        if Random(f"{plan.unit} {plan.index}").random() >= yields.get(plan.cell.cell_id, 1.0):
            return Row(*base, "rejection", "vote", "no majority", cell=plan.cell.cell_id)
        text = digest(plan.unit, str(plan.index))[:12]
        return Row(*base, "instance", input=text, answer="yes", cell=plan.cell.cell_id, output_tokens=7)

    return write


def test_a_target_per_cell_is_met_in_each_although_they_yield_unequally(tmp_path):
    run = fake.arm_run(tmp_path, generation={"accepted_rows": 61, "target_per": "cell"})
    result = generate(run, fake.FakePool(write_in_cells({"c0": 0.1, "c1": 0.4})))
    assert Counter(row["cell"] for row in dataset_rows(run)) == {"c0": 21, "c1": 20, "c2": 20}
    assert result.overshoot["a"] <= 2 * MAX_UNITS_PER_LEASE * 8 * run.pool.replicas
    small = [row["row_id"] for row in dataset_rows(run)]
    grown = fake.arm_run(tmp_path, generation={"accepted_rows": 150, "target_per": "cell"})
    generate(grown, fake.FakePool(write_in_cells({"c0": 0.5, "c1": 0.2})))
    assert Counter(row["cell"] for row in dataset_rows(grown)) == {"c0": 50, "c1": 50, "c2": 50}
    assert [row["row_id"] for row in dataset_rows(grown)][:61] == small


def test_a_cell_that_cannot_be_filled_ends_the_run_and_is_named(tmp_path):
    run = fake.arm_run(tmp_path, generation={"accepted_rows": 60, "target_per": "cell", "patience_units": 4})
    with pytest.raises(
        YieldError, match=r"40 of 60 rows accepted,\nbundle b1 lacks 20 of 20;\n0 of the last \d+ flows"
    ):
        generate(run, fake.FakePool(write_in_cells({"c1": 0.0})))


def test_a_task_that_yields_nothing_ends_early_with_reasons_and_keeps_everything(tmp_path):
    run = fake.arm_run(tmp_path, generation={"accepted_rows": 1000, "patience_units": 8})
    with pytest.raises(
        YieldError, match=r"task 'a': 0 of 1,000 rows accepted,\n0 of .*\n +\d+  parse: no input tag, such as '"
    ):
        generate(run, fake.FakePool(fake.write_some(0.0)))
    assert 8 <= len(replay(run.store).state.places) <= 40
    with pytest.raises(YieldError):
        generate_arm(run, no_pool, print, fake.local_coordinator)
    patient = fake.arm_run(tmp_path, generation={"min_yield": 0.0})
    assert generate(patient, fake.FakePool(fake.write_some(0.9))).accepted == {"a": 60}


def test_units_that_were_given_up_are_named_and_the_next_driver_goes_on_with_others(tmp_path):
    run = fake.arm_run(tmp_path)
    pool = fake.FakePool(fake.write_some(0.9))
    pool.start_generation = lambda job, link: None

    def give_up_all(link):
        for record in read_records(run.store):
            for unit in record.units():
                link.call("give_up", unit, "poison")

    pool.tend = give_up_all
    with pytest.raises(GaveUpError, match=r"0 of 60 rows accepted, .* units given up: .*poison"):
        generate(run, pool)
    result = generate(run, fake.FakePool(fake.write_some(0.9)))
    assert result.accepted == {"a": 60}
    assert "000000-000000" in result.given_up


@pytest.mark.parametrize(
    ("limits", "name"),
    [({"wall_seconds": 0.5}, "wall_seconds"), ({"gpu_hours": 1 / 3600}, "gpu_hours")],
    ids=["wall", "gpu"],
)
def test_a_limit_drains_the_run_and_a_higher_one_resumes_it(tmp_path, limits: dict, name: str):
    run = fake.arm_run(tmp_path, generation={"accepted_rows": 100_000, "min_yield": 0.0}, limits=limits)
    with pytest.raises(BudgetError, match=f"{name}.*rows of a"):
        generate(run, fake.FakePool(fake.write_some(0.1)))
    with pytest.raises(BudgetError):
        generate_arm(run, no_pool, print, fake.local_coordinator)
    assert generate(fake.arm_run(tmp_path), fake.FakePool(fake.write_some(0.6))).accepted == {"a": 60}


def test_a_fold_that_saw_what_is_not_visible_starts_again(tmp_path):
    run = fake.arm_run(tmp_path)
    generate(run, fake.FakePool(fake.write_some(0.6)))
    fold = ArmFold(run)
    fold.replay()
    assert fold.complete
    fold.absorb(PrefixAnswer({}, frozenset("a"), {}, 0))
    assert fold.seen() == {"a": (0, "")}
    assert not fold.complete


def test_a_damaged_shard_stops_the_fold(tmp_path):
    run = fake.arm_run(tmp_path)
    generate(run, fake.FakePool(fake.write_some(0.6)))
    place = min(replay(run.store).state.places.items())[1]
    path = Path(run.store.path(place.file))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match=path.name):
        ArmFold(run).replay()


def test_the_store_of_an_arm_may_lie_below_another(tmp_path):
    run = fake.arm_run(tmp_path / "arms" / "direct", generation={"accepted_rows": 5})
    assert generate(run, fake.FakePool(fake.write_some(1.0))).dataset.rows == 5
    assert Store(str(tmp_path)).exists("arms/direct/dataset/round-0/SEALED.json")


@pytest.fixture(scope="module")
def ray_cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def test_the_coordinator_actor_may_be_killed_while_rows_come_in(tmp_path, ray_cluster):
    run = fake.arm_run(tmp_path, generation={"accepted_rows": 400})
    pool = fake.FakePool(fake.write_some(0.5), faults=0.1, reach=ActorLink)
    tend, ticks, kills = pool.tend, [], []

    def tend_and_kill(handle):
        ticks.append(handle)
        lives = sum(name.startswith("incarnation-") for name in run.store.names("manifest"))
        if len(kills) < min(2, lives) and len(ticks) >= 3:  # a kill does not wait: not the same one twice
            kills.append(lives)
            ray.kill(handle, no_restart=False)
        tend(handle)

    pool.tend = tend_and_kill
    result = generate_arm(run, lambda: pool, lambda counters: None)
    assert result.accepted == {"a": 400}
    assert kills == [1, 2]
    assert run.store.exists("manifest/incarnation-000003.json")
    shutil.rmtree(tmp_path / "dataset")
    assert generate_arm(run, no_pool, print).dataset.digest == result.dataset.digest
