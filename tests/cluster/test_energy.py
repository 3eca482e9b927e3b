import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster import energy, energy_book
from cluster.energy import GpuMeter, ProcessMeter, Reading, metered, read_folder
from cluster.energy_book import EnergyBook, read_windows
from cluster.energy_ledger import FAILED, make_ledger
from cluster.energy_report import energy_of
from cluster.report import read_report, render
from generation.energy import Used, Window
from generation.storage import Store, json_bytes, json_lines

BURN = "import time; end = time.process_time() + {}\nwhile time.process_time() < end: pass"


class NvmlError(Exception):
    pass


class FakeNvml:
    """NVML as far as meters use it: each device's counter and power are what the test sets."""

    NVMLError = NvmlError

    def __init__(self, counters: dict[str, int | None], watts: float = 100) -> None:
        self.counters, self.watts = counters, watts

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return str(index)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        value = self.counters[handle]
        if value is None:
            raise NvmlError("Not Supported")
        return value

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return int(1000 * self.watts)


def test_gpus_are_measured_by_the_difference_of_their_counters():
    nvml = FakeNvml({"0": 5_000, "GPU-b": 100})
    meter = GpuMeter(nvml, ["0", "GPU-b"])
    nvml.counters |= {"0": 7_500, "GPU-b": 600}
    assert meter.read(time.monotonic() + 1) == (3_000, 0)
    assert meter.idle_mw == 200_000


def test_a_wrapped_counter_goes_on_and_a_restarted_one_counts_from_zero_as_an_estimate():
    nvml = FakeNvml({"0": 2**32 - 1_000})
    meter, now = GpuMeter(nvml, ["0"]), time.monotonic()
    nvml.counters["0"] = 500
    assert meter.read(now + 10) == (1_500, 0)
    nvml.counters["0"] = 2_000_000
    assert meter.read(now + 20) == (2_001_000, 0)
    nvml.counters["0"] = 300
    assert meter.read(now + 30) == (2_001_000, 300)


def test_a_shared_gpu_is_split_by_share_and_only_an_estimate():
    nvml = FakeNvml({"0": 0})
    meter = GpuMeter(nvml, ["0"], share=0.25)
    nvml.counters["0"] = 8_000
    assert meter.read(time.monotonic() + 1) == (0, 2_000)


def test_a_gpu_without_counter_is_estimated_from_its_power():
    meter = GpuMeter(FakeNvml({"0": None}, watts=300), ["0"])
    measured, estimated = meter.read(time.monotonic() + 10)
    assert measured == 0
    assert estimated == pytest.approx(3_000_000, rel=0.01)


def no_nvml() -> None:
    raise ModuleNotFoundError("No module named 'pynvml'")


def test_without_nvml_the_gpu_is_not_measured_and_the_reading_says_why():
    reading = ProcessMeter(gpu_share=1.0, nvml=no_nvml).read()
    assert (reading.measured_mj, reading.estimated_mj) == (0, 0)
    assert "pynvml" in reading.unmetered


def test_a_gpu_that_goes_away_is_not_measured_from_then_on(monkeypatch: pytest.MonkeyPatch):
    nvml = FakeNvml({"0": 0})
    monkeypatch.setattr(energy, "_assigned_gpus", lambda: ["0"])
    meter = ProcessMeter(gpu_share=1.0, nvml=lambda: nvml)
    nvml.counters["0"] = 1_000
    assert meter.read().measured_mj == 1_000
    del nvml.counters["0"]
    assert "KeyError" in meter.read().unmetered


def test_cpu_time_of_children_counts_while_they_run_and_after_they_have_ended():
    meter, alone = ProcessMeter(children=True), ProcessMeter()
    before, own = meter.read().core_ms, alone.read().core_ms
    subprocess.run([sys.executable, "-c", BURN.format(0.3)], check=True)
    ended = meter.read().core_ms
    assert ended - before >= 250
    with subprocess.Popen([sys.executable, "-c", BURN.format(0.3) + "\ninput()"], stdin=subprocess.PIPE) as child:
        while meter.read().core_ms - ended < 250:
            time.sleep(0.01)
        child.communicate(b"\n")
    assert meter.read().core_ms - before >= 500
    assert alone.read().core_ms - own < meter.read().core_ms - before


def test_a_rank_keeps_its_last_reading_and_the_driver_books_it_once(tmp_path: Path):
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom cluster.energy import metered\n"
        f"with metered(Path(sys.argv[1]), 0.0):\n exec({BURN.format(0.1)!r})\n"
    )
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "energy")], check=True, cwd=Path(__file__).parents[2]
        )
    store = Store(str(tmp_path / "run"))
    for _ in range(2):
        EnergyBook(store, "test").add_processes("train-psi", tmp_path / "energy")
    windows = read_windows(store)
    assert [(window.stage, window.role) for window in windows] == [("train-psi", "rank")] * 2
    assert all(window.used.core_ms >= 100 for window in windows)
    assert sum(reading.core_ms for reading in read_folder(tmp_path / "energy")) == sum(w.used.core_ms for w in windows)


def test_a_block_that_fails_has_still_been_metered(tmp_path: Path):
    with pytest.raises(ValueError, match="bad"), metered(tmp_path, 0.0):
        raise ValueError("bad")
    assert len(read_folder(tmp_path)) == 1


def test_what_was_used_is_published_again_and_again_while_a_stage_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    published: list[dict[tuple[str, ...], float]] = []
    monkeypatch.setattr(energy_book.Gauges, "publish", lambda _, series: published.append(series))
    monkeypatch.setattr(energy_book, "GAUGE_SECONDS", 0.01)
    book = EnergyBook(Store(str(tmp_path)), "test")
    with book.stage("principles"):
        exec(BURN.format(0.05))
    with book.stage("train-psi"):
        booked = len(published)
        while len(published) < booked + 3:
            time.sleep(0.01)
    assert published[booked] == published[booked + 2]
    assert published[booked]["psi_core_seconds", "principles", "driver"] >= 0.03


def test_the_thread_that_publishes_again_never_does_so_while_the_book_itself_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    busy, threads, overlaps = threading.Lock(), set[str](), list[bool]()

    def publish(*_: object) -> None:
        alone = busy.acquire(blocking=False)
        threads.add(threading.current_thread().name)
        overlaps.append(not alone)
        time.sleep(0.002)
        if alone:
            busy.release()

    monkeypatch.setattr(energy_book.Gauges, "publish", publish)
    monkeypatch.setattr(energy_book, "GAUGE_SECONDS", 0.001)
    book = EnergyBook(Store(str(tmp_path)), "test")
    with book.stage("principles"):
        while len(overlaps) < 50 or len(threads) < 2:
            book.release()
            time.sleep(0.001)
    assert not any(overlaps)


def test_the_drivers_own_work_is_booked_under_its_stage(tmp_path: Path):
    book = EnergyBook(Store(str(tmp_path)), "test")
    with book.stage("generate-psi"):
        exec(BURN.format(0.05))
    booked = [w for w in read_windows(Store(str(tmp_path))) if w.stage == "generate-psi"]
    assert [(window.role, window.used.core_ms >= 30) for window in booked] == [("driver", True)]


def tokens(draft: int, answer: int = 0) -> dict[str, dict[str, int]]:
    names = ("requests", "prompt_tokens", "cached_tokens")
    both = {"draft": draft, "answer": answer}
    return {stage: {**dict.fromkeys(names, 0), "output_tokens": count} for stage, count in both.items() if count}


def line(stage: str, core_ms: int, role: str = "replica", pool: str = "small", **more: object) -> dict[str, object]:
    nothing = {"measured_mj": 0, "estimated_mj": 0, "unmetered": "", "idle_mj": 0, "tokens": {}, "unfinished": 0}
    which = {"process": f"{role}-{pool}", "role": role, "pool": pool, "time": "", "seconds": 0.0}
    return {**nothing, **which, "stage": stage, "wall_ms": 1_000, "core_ms": core_ms, **more}


def test_work_that_nobody_saw_is_told_apart_where_tokens_tell_it():
    used = Used(1_000, 4_000, 0, 0)
    windows = [Window("generate-psi", "p", "replica", "small", used, tokens=tokens(300, 100))]
    ledger = make_ledger(windows, {"psi": tokens(225, 100)}, 0.25)
    assert ledger.entries["generate-psi", "generate"].core_ms == 2_250
    assert ledger.entries["generate-psi", "verify"].core_ms == 1_000
    assert ledger.entries["generate-psi", FAILED].core_ms == 750
    assert ledger.total() == used


def summary(rows: int, drafts: int) -> dict[str, object]:
    stages = {
        "parse": {"in": drafts, "out": rows, "reasons": {"no input tag": drafts - rows}},
        "overshoot": {"in": rows, "out": rows, "reasons": {}},
    }
    return {"rows": {"t": rows}, "stages": stages}


def item(number: int, right: bool) -> dict[str, object]:
    return {
        "task": "t",
        "input": str(number),
        "gold": "1",
        "answer": "1",
        "text": "1",
        "finish": "stop",
        "right": right,
    }


def a_run(
    folder: Path, *, large: bool = True, engine: str = "vllm", psi_right: int = 9, psi_core_ms: int = 40_000
) -> Store:
    """Principles take 20 core-seconds, psi's 100 rows 40, the large model's 50 rows 100; a core takes 2 W."""
    store, pool = Store(str(folder)), {"engine": {"kind": engine}}
    settings = {"run": {"name": "r", "seed": 0}, "pools": {"large": pool, "small": {"engine": {"kind": "vllm"}}}}
    energy_section = {"watts_per_core": 2.0, "pue": 1.5, "region": "FR"}
    arms = ["psi", "large"] if large else ["psi"]
    recipe = {**settings, "generation": {"arms": arms}, "energy": energy_section}
    store.replace("recipe.json", json_bytes({"recipe": recipe, "identity_hash": "x"}))
    lines = [
        line("principles", 8_000, pool="large", loading=True),
        line("principles", 4_000, loading=True),
        line("principles", 19_000, pool="large", tokens={"mine": tokens(10)["draft"]}),
        line("principles", 1_000, role="driver", pool=""),
        line("generate-psi", psi_core_ms - 5_000, tokens=tokens(300, 400)),
        line("generate-psi", 5_000, role="driver", pool=""),
        line("train-psi", 7_000, role="rank", pool=""),
    ]
    store.replace("dataset/round-0/summary.json", json_bytes(summary(100, 400)))
    if large:
        lines.append(line("generate-large", 100_000, pool="large", tokens=tokens(500)))
        store.replace("arms/large/dataset/round-0/summary.json", json_bytes(summary(50, 100)))
        right = {"psi": psi_right, "large": 7}
        for arm in ("psi", "large"):
            items = [item(number, number < right[arm]) for number in range(10)]
            store.replace(f"evaluation/{arm}-items.jsonl", json_lines(items))
    store.replace("energy/session-1-000001.jsonl", json_lines(lines))
    return store


def test_kinds_of_work_and_stages_of_the_run_each_add_up_to_the_total(tmp_path: Path):
    found = energy_of(a_run(tmp_path))
    assert found["total_joules"] == pytest.approx(2 * (12 + 19 + 1 + 40 + 7 + 100))
    for part in ("stages", "run_stages"):
        assert sum(one["joules"] for one in found[part].values()) == pytest.approx(found["total_joules"])
        assert {one["method"] for one in found[part].values()} == {"estimated"}
    assert found["stages"]["load_idle"]["core_seconds"] == 12
    assert found["stages"]["train"]["core_seconds"] == 7
    assert found["measured_share"] == 0


def test_the_counterfactual_is_the_large_models_own_energy_at_equal_count(tmp_path: Path):
    found = energy_of(a_run(tmp_path))
    against = found["counterfactual"]
    assert found["principles_joules"] == 40
    assert found["arms"]["psi"]["joules_per_accepted"] == pytest.approx(0.8)
    assert found["arms"]["large"]["joules_per_accepted"] == pytest.approx(4)
    assert (against["psi_joules"], against["large_joules"]) == pytest.approx((120, 400))
    assert found["ratio_to_large"] == pytest.approx(0.3)
    assert against["ratio_with_starts"] == pytest.approx((120 + 16 + 8) / (400 + 16))
    assert found["break_even_rows"] == pytest.approx(40 / 3.2)
    assert against["break_even_rows_with_starts"] == pytest.approx((40 + 8) / 3.2)
    assert against["large_accepted_share"] == 0.5
    assert not against["enough_drafts"]


@pytest.mark.parametrize(
    ("right", "status"),
    [(9, "the ratio is an upper bound"), (6, "no difference in accuracy was shown"), (2, "not reached")],
    ids=["better", "a little worse", "worse"],
)
def test_equal_accuracy_is_only_claimed_where_it_was_reached(tmp_path: Path, right: int, status: str):
    equal = energy_of(a_run(tmp_path, psi_right=right))["counterfactual"]["equal_accuracy"]
    assert equal["status"] == status
    assert equal["ci95"][0] <= equal["difference"] <= equal["ci95"][1]


def test_principles_never_pay_off_where_the_large_model_costs_less_a_row(tmp_path: Path):
    found = energy_of(a_run(tmp_path, psi_core_ms=400_000))
    assert found["ratio_to_large"] > 1
    assert found["break_even_rows"] == "never"


def test_without_the_large_arm_nothing_is_said_of_it(tmp_path: Path):
    found = energy_of(a_run(tmp_path, large=False))
    assert (found["counterfactual"], found["ratio_to_large"], found["break_even_rows"]) == (None, None, None)


def test_a_remote_large_model_has_no_joules_and_no_grams(tmp_path: Path):
    found = energy_of(a_run(tmp_path, engine="http"))
    assert (found["total_joules"], found["principles_joules"], found["carbon"]["grams"]) == (None, None, None)
    assert found["stages"]["mine"]["joules"] is None
    assert found["stages"]["verify"]["joules"] is not None
    assert found["counterfactual"] is None


def test_grams_follow_from_power_usage_and_the_region(tmp_path: Path):
    found = energy_of(a_run(tmp_path))
    assert found["carbon"]["grams"] == pytest.approx(found["total_joules"] / 3.6e6 * 1.5 * 56.0)
    assert found["carbon"]["source"] == "CodeCarbon's table, 2023, FR"


def test_the_page_states_ratio_accuracy_carbon_and_what_they_rest_on(tmp_path: Path):
    report = read_report(a_run(tmp_path))
    page = " ".join(render(report).split())
    for said in ("took 0.3 times the energy", "120 J against 400 J", "pay off from 12 rows on", "an upper bound", "FR"):
        assert said in page
    assert "from 100 drafts only" in page
    assert report["units"]["energy.counterfactual.psi_joules"] == "J"
    assert report["units"]["energy.stages.mine.core_seconds"] == "core-seconds"


def test_a_run_without_readings_has_no_figures(tmp_path: Path):
    store = Store(str(tmp_path))
    store.replace("recipe.json", json_bytes({"recipe": {"generation": {"arms": ["psi"]}}}))
    found = energy_of(store)
    assert (found["total_joules"], found["kwh"], found["stages"], found["arms"]["psi"]["joules_generate"]) == (
        None,
        None,
        {},
        None,
    )
    json.dumps(found, allow_nan=False)


def test_measured_and_estimated_joules_are_told_apart(tmp_path: Path):
    store = a_run(tmp_path, large=False)
    lines = [line("generate-psi", 10_000, tokens=tokens(10), measured_mj=60_000)]
    store.replace("energy/session-1-000001.jsonl", json_lines(lines))
    found = energy_of(store)
    assert (found["total_joules"], found["method"]) == (80, "mixed")
    assert found["measured_share"] == 0.75
    assert found["stages"]["generate"]["gpu_joules"] == 60


def test_a_reading_survives_the_trip_between_processes():
    import pickle

    reading = Reading("p", 1, 2, tokens={"draft": {"requests": 1}})
    assert pickle.loads(pickle.dumps(reading)) == reading
