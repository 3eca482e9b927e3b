import threading
import time
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from generation.engines.base import Request, Sampling
from generation.engines.build import build_engine
from generation.engines.config import ScriptedEngine
from generation.flows import Flow, FlowCall
from generation.pump import Pump
from generation.time_book import Shortage, TimeBook

FULL = 4
SHORTAGES: tuple[Shortage, ...] = ("starved", "sink_stalled", "tail")


class Hands:
    """A clock and a shortage that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.why: Shortage = "starved"
        self.book = TimeBook(FULL, lambda: self.why, lambda: self.now)


def test_boot_lasts_until_the_first_turn() -> None:
    hands = Hands()
    hands.book.begin()
    hands.now = 3.0
    assert hands.book.seconds()["boot_seconds"] == 3.0
    hands.book.turn(0)
    hands.now = 5.0
    assert hands.book.seconds() == {
        "boot_seconds": 3.0, "starved_seconds": 2.0, "busy_seconds": 0.0, "sink_stalled_seconds": 0.0, "tail_seconds": 0.0,
    }  # fmt: skip


def test_a_full_engine_is_busy_and_one_that_is_short_says_why() -> None:
    hands = Hands()
    hands.book.begin()
    for unfinished, why, place in [
        (FULL, "tail", "busy"),
        (1, "starved", "busy"),
        (0, "starved", "starved"),
        (1, "tail", "tail"),
        (0, "tail", "tail"),
        (FULL - 1, "sink_stalled", "sink_stalled"),
    ]:
        hands.why = why
        hands.book.turn(unfinished)
        before = hands.book.seconds()[f"{place}_seconds"]
        hands.now += 1.0
        assert hands.book.seconds()[f"{place}_seconds"] == before + 1.0


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(SHORTAGES), st.booleans())))
def test_each_second_is_in_one_place(turns: list[tuple[int, Shortage, bool]]) -> None:
    hands = Hands()
    hands.book.begin()
    for unfinished, why, looks in turns:
        hands.why = why
        hands.book.turn(unfinished)
        hands.now += 0.25
        if looks:
            hands.book.seconds()
    hands.book.end()
    age = hands.now
    hands.now += 100.0
    assert sum(hands.book.seconds().values()) == age


def ask(text: str) -> Flow:
    yield Request("", text, Sampling(4), "draft")


def test_what_a_pump_has_spent_is_its_age_and_its_tokens() -> None:
    pump = Pump(build_engine(ScriptedEngine(kind="scripted", max_in_flight=4, seconds_per_step=0.001)))
    latest = time.monotonic()
    pump.start()
    earliest = time.monotonic()
    pump.wait_ready()
    pump.ask([FlowCall(str(i), ask, (f"a b {i}",)) for i in range(40)])
    before, spent, after = time.monotonic(), pump.spent(), time.monotonic()
    pump.stop()
    seconds = sum(value for name, value in asdict(spent).items() if name.endswith("_seconds"))
    assert before - earliest <= seconds <= after - latest
    assert spent.busy_seconds > 0
    assert spent.steps == pump.stats().steps > 0
    assert (spent.prompt_tokens, spent.output_tokens) == (120, 40)


def test_an_engine_behind_a_stuck_writer_is_stalled_by_its_sink() -> None:
    pump = Pump(build_engine(ScriptedEngine(kind="scripted", max_in_flight=1)))
    pump.start()
    pump.wait_ready()
    gate, stuck = threading.Event(), threading.Event()

    class Stuck:
        token_budget = None
        more_may_come = True

        def next_call(self) -> FlowCall:
            return FlowCall("a", ask, ("x",))

        def deliver(self, result: object) -> None:
            stuck.set()
            gate.wait()

        def fail(self, error: Exception) -> None:
            pass

    work = Stuck()
    pump.attach(work)
    stuck.wait()
    while not pump.spent().sink_stalled_seconds:
        time.sleep(0.01)
    gate.set()
    pump.detach(work)
    pump.stop()
