import json
import re
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import engine_book as engine_book_module
from cluster.engine_book import EngineBook, noted_engines
from cluster.engine_count import EngineCount, EngineCounter
from cluster.progress import ProgressLine
from generation.storage import Store

moments = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.floats(0, 100)), min_size=1, max_size=20)


@given(moments, st.floats(1, 200))
def test_engines_are_overdue_once_too_few_have_been_ready_without_a_break_for_as_long_as_they_may(
    moments: list[tuple[int, int, float]], limit: float
) -> None:
    counter, now, since = EngineCounter(limit), 0.0, 0.0
    was_short = False
    for wanted, ready, seconds in moments:
        now += seconds
        count = counter.count(wanted, ready, ready, now)
        short = ready < wanted
        since = since if short and was_short else now
        was_short = short
        assert count.short_seconds == (now - since if short else 0.0)
        assert count.overdue == (wanted - ready if short and now - since >= limit else 0)


class Scene:
    """A book, the clock that it looks at, and what it said."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.said, self.folder = 100.0, StringIO(), folder
        monkeypatch.setattr(engine_book_module.time, "monotonic", lambda: self.now)
        self.book = EngineBook(Store(str(folder)), "test", ProgressLine(self.said, lambda: self.now))
        self.counter = EngineCounter(60.0)

    def pass_by(self, seconds: float, ready: int, wanted: int = 4) -> None:
        for _ in range(round(seconds)):
            self.now += 1.0
            self.book.note("small", self.counter.count(wanted, ready, ready, self.now))

    @property
    def noted(self) -> list[tuple[int, int, int]]:
        files = sorted((self.folder / "metrics").glob("engines-*.jsonl"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return [(line["wanted"], line["ready"], line["overdue"]) for line in lines]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def test_too_few_engines_are_said_once_and_so_is_the_end_of_it(scene: Scene) -> None:
    scene.pass_by(300, ready=1)
    scene.pass_by(30, ready=4)
    assert scene.said.getvalue().splitlines() == [
        "pool 'small': only 1 of 4 engines are ready after 1m 00s; the work goes on with them. 3 have no node: has the cluster room for them?",
        "pool 'small': all 4 engines are ready",
    ]


def test_the_run_folder_and_the_record_of_a_stage_say_how_many_engines_there_were(scene: Scene) -> None:
    scene.pass_by(10, ready=1)
    scene.book.stage_facts()
    scene.pass_by(80, ready=2)
    scene.pass_by(20, ready=4)
    assert scene.book.stage_facts() == {
        "small": {"wanted": 4, "most_ready": 4, "short_seconds": 81.0, "overdue_seconds": 30.0}
    }
    scene.book.release("small")
    assert scene.noted == [(4, 1, 0), (4, 2, 0), (4, 2, 2), (4, 4, 0), (0, 0, 0)]
    assert scene.book.stage_facts() == {}


def test_what_is_not_between_the_beginning_and_the_end_of_a_stage_does_not_count_for_it(scene: Scene) -> None:
    scene.pass_by(10, ready=1)
    scene.now += 5.0
    assert scene.book.stage_facts()["small"]["short_seconds"] == 14.0
    scene.now += 1000.0
    assert scene.book.stage_facts() == {}
    scene.pass_by(10, ready=1)
    assert scene.book.stage_facts()["small"]["short_seconds"] == 10.0


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (EngineCount(4, 2, 6, 3, 60.0, 2), ". 1 have no node: has the cluster room for them?"),
        (EngineCount(4, 2, 6, 2, 60.0, 2), ""),
        (EngineCount(4, 2, 1, 0, 60.0, 2), ". 2 have no node: has the cluster room for them?"),
    ],
    ids=["one of the places of those that drain", "all that are wanted have one", "not known yet of one that is ready"],
)
def test_engines_without_a_node_are_said_where_there_are_some(scene: Scene, count: EngineCount, said: str) -> None:
    scene.book.note("small", EngineCount(4, 4, 4))
    scene.book.note("small", count)
    start = "pool 'small': only 2 of 4 engines are ready after 1m 00s; the work goes on with them"
    assert scene.said.getvalue() == f"{start}{said}\n"


def test_a_pool_that_stays_as_it_is_is_still_shown_when_another_has_changed_a_hundred_times(scene: Scene) -> None:
    scene.book.note("large", EngineCount(wanted=2, ready=1, placed=1))
    for ready in range(100):
        scene.now += 10.0
        scene.book.note("small", EngineCount(wanted=100, ready=ready, placed=100))
    large, small = noted_engines(Store(str(scene.folder)))
    assert large.startswith("pool large: 1 of 2 ready, too few since")
    assert small.startswith("pool small: 99 of 100 ready, too few since")


def test_the_folder_says_where_the_pools_of_the_newest_driver_stand_and_since_when_they_have_too_few(
    scene: Scene,
) -> None:
    scene.pass_by(100, ready=1)
    scene.book.note("large", EngineCount(wanted=1, ready=1, placed=1))
    large, small = noted_engines(Store(str(scene.folder)))
    assert re.fullmatch(r"pool small: 1 of 4 ready, too few since \d\d-\d\d \d\d:\d\d:\d\d", small)
    assert large == "pool large: 1 of 1 ready"
    scene.book.release("small")
    assert noted_engines(Store(str(scene.folder))) == [large]


def test_people_see_what_a_driver_waits_for_before_its_first_engine(scene: Scene) -> None:
    scene.book.wait("small", EngineCount(wanted=4, ready=0, placed=1, short_seconds=65.0))
    assert scene.said.getvalue() == "pool small  0/4 engines  waiting for 1m 05s\n"
