from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.cell_yield import CellYield
from cluster.waves import CellStanding, WaveOrder, cell_weights, chance, open_cells, ramped, wave
from generation.curation.fold import Verdict
from generation.instances.plan import Bundle, Cell, PlanRecord, parse_unit_id, unit_flows
from generation.rows import Row

FLOWS = 16


def kinds_of(bundles: int, cells: int) -> list[tuple[Bundle, tuple[Cell, ...]]]:
    return [
        (Bundle(f"b{b}", (), "", ""), tuple(Cell(f"b{b}c{c}", f"text {c}") for c in range(cells)))
        for b in range(bundles)
    ]


def plan(kinds, standings, units: int, index: int = 0, min_novelty: float = 0.05) -> list[PlanRecord]:
    rng = chance(7, "t", index)
    return wave(WaveOrder("t", units, index, FLOWS), kinds, cell_weights(standings, min_novelty, rng), rng)


def unknown(kinds) -> dict[str, CellStanding]:
    return {cell.cell_id: CellStanding() for _, cells in kinds for cell in cells}


def flows_of(records: list[PlanRecord]) -> Counter[str]:
    return Counter(
        flow.cell.cell_id
        for record in records
        for unit in record.units()
        for flow in unit_flows(record, parse_unit_id(unit)[1])
    )


@given(st.integers(1, 200), st.integers(1, 5), st.integers(1, 20), st.integers(0, 50))
def test_the_first_wave_is_even_and_its_records_say_how_many_flows_each_cell_gets(units, bundles, cells, index):
    kinds = kinds_of(bundles, cells)
    records = plan(kinds, unknown(kinds), units, index)
    assert sum(record.num_units for record in records) == units
    assert [record.index for record in records] == list(range(index, index + len(records)))
    assert len({record.bundle.bundle_id for record in records}) == len(records) == min(units, bundles)
    assert all(record.num_units - units // bundles in (0, 1) for record in records)
    assert all(abs(n - sum(r.cell_flows) / cells) <= 1 for r in records for n in r.cell_flows)
    logged = {cell.cell_id: n for r in records for cell, n in zip(r.cells, r.cell_flows, strict=True)}
    assert flows_of(records) == logged


@given(st.integers(1, 12), st.integers(1, 64), st.integers(1, 9))
def test_each_unit_of_a_record_has_about_the_same_mix_of_cells(units, flows, cells):
    kinds = kinds_of(1, cells)
    rng = chance(0, "t", 0)
    (record,) = wave(WaveOrder("t", units, 0, flows), kinds, cell_weights(unknown(kinds), 0.05, rng), rng)
    for number in range(units):
        mix = Counter(flow.cell.cell_id for flow in unit_flows(record, number))
        for cell, total in zip(record.cells, record.cell_flows, strict=True):
            assert abs(mix[cell.cell_id] - total / units) < 6


def test_a_record_survives_its_way_to_storage():
    kinds = kinds_of(2, 3)
    order, rng = WaveOrder("t", 5, 3, FLOWS, 0.85), chance(1, "t", 3)
    for record in wave(order, kinds, cell_weights(unknown(kinds), 0.05, rng), rng):
        assert PlanRecord.from_json(record.to_json()) == record
        assert record.draft_temperature == 0.85


def test_the_plan_follows_from_seed_index_and_statistics_alone():
    kinds = kinds_of(3, 4)
    known = {cell: CellStanding(64, n, 2) for n, cell in enumerate(unknown(kinds))}
    assert plan(kinds, known, 9, 5) == plan(kinds, dict(known), 9, 5)
    assert [r.cell_flows for r in plan(kinds, known, 9, 5)] != [r.cell_flows for r in plan(kinds, known, 9, 6)]


@given(st.lists(st.tuples(st.integers(0, 256), st.floats(0, 1)), min_size=1, max_size=30), st.integers(0, 99))
def test_every_open_cell_keeps_a_quarter_of_an_even_share(seen, index):
    standings = {f"c{i}": CellStanding(flows, int(share * flows), 0) for i, (flows, share) in enumerate(seen)}
    weights = cell_weights(standings, 0.05, chance(0, "t", index))
    assert sum(weights.values()) == pytest.approx(1)
    assert all(weight >= 1 / (4 * len(standings)) - 1e-12 for weight in weights.values())


def test_work_goes_where_rows_are_accepted_and_new():
    standings = {"good": CellStanding(256, 200), "poor": CellStanding(256, 20), "fair": CellStanding(256, 100)}
    weights = cell_weights(standings, 0.05, chance(0, "t", 1))
    assert weights == pytest.approx({"good": 0.75 + 0.25 / 3, "poor": 0.25 / 3, "fair": 0.25 / 3})
    close = {"a": CellStanding(10, 5), "b": CellStanding(10, 5)}
    assert all(0.3 < weight < 0.7 for weight in cell_weights(close, 0.05, chance(0, "t", 1)).values())


def test_over_many_small_waves_the_flows_are_those_of_the_weights():
    kinds = kinds_of(2, 2)
    weights = {"b0c0": 0.55, "b0c1": 0.15, "b1c0": 0.2, "b1c1": 0.1}
    total: Counter[str] = Counter()
    for index in range(2000):
        rng = chance(0, "t", index)
        for record in wave(WaveOrder("t", 1, index, FLOWS), kinds, weights, rng):
            assert len(record.cells) <= 2
            total.update(dict(zip([c.cell_id for c in record.cells], record.cell_flows, strict=True)))
    assert total.total() == 2000 * FLOWS
    assert {cell: n / total.total() for cell, n in total.items()} == pytest.approx(weights, abs=0.03)


def test_a_spent_cell_gets_no_flow_while_another_is_open():
    kinds = kinds_of(2, 2)
    standings = unknown(kinds) | {"b0c0": CellStanding(200, 4, 96), "b1c0": CellStanding(200, 90, 100)}
    assert standings["b0c0"].is_spent(0.05)
    assert open_cells(standings, 0.05) == ["b0c1", "b1c0", "b1c1"]
    assert "b0c0" not in flows_of(plan(kinds, standings, 400))
    assert set(flows_of(plan(kinds, standings, 400))) == {"b0c1", "b1c0", "b1c1"}


def test_of_cells_that_are_all_spent_the_one_that_brings_most_stays_open():
    standings = {"a": CellStanding(200, 1, 99), "b": CellStanding(200, 4, 96), "c": CellStanding(200, 0, 90)}
    assert open_cells(standings, 0.05) == ["b"]
    assert cell_weights(standings, 0.05, chance(0, "t", 0)) == {"b": 1.0}


def test_few_repetitions_and_other_rejections_spend_no_cell():
    assert not CellStanding(200, 0, 19).is_spent(0.05)
    assert CellStanding(200, 0, 20).is_spent(0.05)
    assert not CellStanding(200, 0, 0).is_spent(0.05)
    assert not CellStanding(200, 0, 200).is_spent(0.0)


def test_a_cell_is_known_by_its_last_flows_and_duplicates_of_the_fold_are_repetitions():
    cells = CellYield(["a", "b"], window=4)
    written, unwritten = (Row("r", "u", 0, "t", "instance", cell="a", input=text) for text in ("text", ""))
    cells.add(written, Verdict("r", True))
    cells.add(unwritten, Verdict("r", False, "parse", "why"))
    for stage in ("duplicate", "near_duplicate", "vote", "overshoot"):
        cells.add(written, Verdict("r", False, stage, "why"))
    cells.add(written._replace(cell="gone"), Verdict("r", True))
    assert cells.standings() == {"a": CellStanding(4, 1, 1, 1, 1), "b": CellStanding()}
    cells.add(unwritten, Verdict("r", False, "parse", "why"))
    assert cells.standings()["a"] == CellStanding(4, 1, 1, 0, 1)


def test_a_hard_vote_spends_no_cell_and_drafts_that_are_seen_or_alike_do():
    assert not CellStanding(256, 6, 0, 128, 122).is_spent(0.05)
    assert CellStanding(256, 1, 0, 250, 5).is_spent(0.05)
    assert CellStanding(256, 0, 20, 0, 236).is_spent(0.05)
    assert CellStanding(256, 5, 45, 150, 50).is_spent(0.05)
    assert not CellStanding(256, 0, 2, 0, 254).is_spent(0.05)


def test_the_temperature_rises_as_the_pool_fills():
    assert [ramped((0.7, 1.0), kept, 100) for kept in (0, 50, 100, 130)] == [0.7, 0.85, 1.0, 1.0]
    assert ramped(None, 0, 100) is None
