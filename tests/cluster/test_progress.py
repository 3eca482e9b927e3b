from collections.abc import Iterator
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.progress import (
    Counters,
    ProgressLine,
    Rates,
    count,
    duration,
    format_line,
    interval,
    percent,
    rates,
    summary_table,
)
from generation.spent import Spent


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self, step: float = 1.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


naturals = st.integers(min_value=0, max_value=10**18)
maybe = st.none() | naturals
speeds = st.none() | st.floats(min_value=0, max_value=1e15)


@given(
    st.builds(
        Counters, st.text(max_size=200), naturals, maybe, st.sampled_from(["rows", "steps"]), maybe, maybe, maybe
    ),
    st.builds(Rates, speeds, speeds),
    st.integers(min_value=1, max_value=200),
)
def test_a_line_is_never_wider_than_asked_and_never_breaks(counters: Counters, speed: Rates, width: int) -> None:
    line = format_line(counters, speed, width)
    assert len(line) <= width
    assert line.isprintable()


def test_a_line_shows_stage_rows_share_speed_time_left_and_replicas() -> None:
    counters = Counters("generate psi", 412, 600, tried=672, tokens=90_000, replicas=2, wanted=4)
    assert format_line(counters, Rates(2.6, 1203.7), 120) == (
        "generate psi  412/600 rows  61.3 % accepted  1,204 tokens/s  2.6 rows/s  ETA 1m 12s  2/4 replicas"
    )


def test_a_narrow_line_tells_of_trouble_before_anything_that_can_wait() -> None:
    counters = Counters("generate psi", 412, 600, tried=672, tokens=90_000, replicas=64, wanted=64)
    assert format_line(counters, Rates(2.6, 1203.7, starved=0.32, sink_stalled=0.1)) == (
        "generate psi  412/600 rows  1,204 tokens/s  64 replicas  32 % starved"
    )
    assert "12 % sink-stalled" in format_line(counters, Rates(2.6, 1203.7, sink_stalled=0.12))
    assert "%" not in format_line(counters, Rates(2.6, 1203.7, starved=0.04))


def test_waits_are_shares_of_the_time_that_replicas_spent_in_between() -> None:
    before, now = Spent(boot_seconds=10, busy_seconds=5, starved_seconds=1), Spent(10, 3, 9, 2)
    found = rates([(0.0, Counters("s", spent=before)), (4.0, Counters("s", spent=now))])
    assert (found.starved, found.sink_stalled) == (0.25, 0.25)


def test_what_is_not_known_is_left_out() -> None:
    assert format_line(Counters("principles", 3, noun="calls"), Rates()) == "principles  3 calls"
    assert (
        format_line(Counters("generate psi", 0, 600, tried=0), Rates(0.0, 0.0))
        == "generate psi  0/600 rows  0 tokens/s"
    )


def test_speed_is_that_between_the_first_and_the_last_counters() -> None:
    assert rates([(0.0, Counters("s", 0, tokens=0)), (4.0, Counters("s", 8, tokens=1000))]) == Rates(2.0, 250.0)
    assert rates([(0.0, Counters("s", 1))]) == Rates()
    assert rates([(1.0, Counters("s", 1)), (1.0, Counters("s", 2))]) == Rates()


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_once_for_a_new_stage() -> None:
    stream = StringIO()
    line = ProgressLine(stream, Clock())
    for done in range(25):
        line.show(Counters("generate psi", done, 100))
    line.show(Counters("train psi", 0, 150, noun="steps"))
    line.close()
    lines = stream.getvalue().splitlines()
    assert [text.split("  ")[1] for text in lines] == ["0/100 rows", "10/100 rows", "20/100 rows", "0/150 steps"]
    assert "ETA 1m 30s" in lines[1]
    assert "\r" not in stream.getvalue()


def test_a_terminal_gets_one_line_that_refreshes_and_covers_the_longer_one_before() -> None:
    stream = Terminal()
    line = ProgressLine(stream, Clock())
    line.show(Counters("generate psi", 99, 100, replicas=2))
    line.show(Counters("train", 0))
    line.close()
    first, second = stream.getvalue().strip("\n").split("\r")[1:]
    assert second.rstrip() == "train  0 rows"
    assert len(second) == len(first)
    assert stream.getvalue().count("\n") == 1


def test_a_terminal_is_not_refreshed_more_often_than_an_eye_can_follow() -> None:
    stream = Terminal()
    line = ProgressLine(stream, Clock(0.01))
    for done in range(100):
        line.show(Counters("generate psi", done, 100))
    assert stream.getvalue().count("\r") <= 6


def test_what_is_said_stays_and_does_not_hang_on_the_progress_line() -> None:
    stream = Terminal()
    line = ProgressLine(stream, Clock())
    line.show(Counters("generate psi", 99, 100))
    line.say("generate psi took 64 s")
    line.say("train psi ...")
    line.close()
    shown = stream.getvalue().replace("\r", "\n").split("\n")
    assert [text.rstrip() for text in shown if text.strip()] == [
        "generate psi  99/100 rows", "generate psi took 64 s", "train psi ...",
    ]  # fmt: skip


@pytest.mark.parametrize("stream_type", [StringIO, Terminal], ids=["log", "terminal"])
def test_nothing_is_printed_after_close(stream_type: type[StringIO]) -> None:
    stream = stream_type()
    line = ProgressLine(stream, Clock())
    line.show(Counters("generate psi", 1, 2))
    line.close()
    before = stream.getvalue()
    line.show(Counters("train psi"))
    line.say("more")
    line.close()
    assert stream.getvalue() == before


def test_the_speed_follows_the_last_half_minute_and_forgets_the_slow_start() -> None:
    stream = StringIO()
    line = ProgressLine(stream, Clock(), interval_seconds=100.0)
    for second in range(101):
        line.show(Counters("generate psi", max(0, second - 50) * 4, 400))
    assert "ETA 50.0 s" in stream.getvalue().splitlines()[-1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "not measured"), (0, "0.0 s"), (59.94, "59.9 s"), (59.96, "1m 00s"), (3599.6, "1h 00m"), (7620, "2h 07m")],
    ids=str,
)
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_shares_counts_and_intervals_say_so_when_they_are_not_measured() -> None:
    assert (percent(None), count(None), interval(None)) == ("not measured",) * 3
    assert interval([0.5, None]) == "not measured"
    assert (percent(0.9321), count(31_234), interval([0.901, 0.9578])) == ("93.2 %", "31,234", "[90.1, 95.8]")
    assert (percent(0), count(0)) == ("0.0 %", "0")


def sections() -> Iterator[tuple[str, dict]]:
    yield (
        "arms",
        {
            "base": {"accuracy": 0.05, "ci95": [0.03, 0.07]},
            "psi": {"accuracy": 0.93, "ci95": [0.9, 0.96], "label_accuracy": None, "rows": 1200},
        },
    )
    yield "stages", {"principles": {"seconds": 31.25}, "evaluate": {"seconds": None}}
    yield "wall", {"seconds": 1293.75}
    yield "run", {"uri": "runs/little"}


def test_the_table_at_the_end_holds_arms_stages_wall_time_and_the_path() -> None:
    assert summary_table(dict(sections())).splitlines() == [
        "arm   accuracy  95 % interval  label accuracy   rows",
        "base     5.0 %     [3.0, 7.0]               -      -",
        "psi     93.0 %   [90.0, 96.0]    not measured  1,200",
        "",
        "stage            seconds",
        "principles          31.2",
        "evaluate    not measured",
        "wall             1,293.8",
        "",
        "report  runs/little/report.html",
    ]


def test_a_training_line_says_the_loss_and_the_speed_and_keeps_both_when_it_is_cut() -> None:
    counters = Counters("train psi", 70, 300, noun="steps", note="loss 0.412")
    line = format_line(counters, Rates(2.5, 1800.0))
    assert line == "train psi  70/300 steps  loss 0.412  1,800 tokens/s  2.5 steps/s  ETA 1m 32s"[: len(line)]
    assert "loss 0.412  1,800 tokens/s" in format_line(counters, Rates(2.5, 1800.0), width=52)
