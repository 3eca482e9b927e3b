"""What a driver sees of a training job while it runs in other processes: the metrics that its first rank writes."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.open_run import OpenRun
from cluster.progress import Counters
from cluster.prometheus import Gauges, training_series
from cluster.repeating import repeating
from generation.storage import Store

_POLL_SECONDS = 1.0
_LONGEST_LINE_BYTES = 65_536


@contextmanager
def training_shown(run: OpenRun, name: str, metrics: Path) -> Generator[None]:
    """Show the steps of a job that is under way in the block, to people and to Prometheus."""
    max_steps = run.recipe.training.max_steps
    counters = Counters(f"train {name}", 0, max_steps, noun="steps")
    gauges = Gauges(run.recipe.run.name)

    def show() -> None:
        line = last_step(metrics)
        gauges.publish(training_series(name, line or {}, max_steps))
        if line is not None:
            note = f"loss {line['loss']:.3f}  {line['tokens_per_second']:,.0f} tokens/s"
            run.line.show(replace(counters, done=line["step"], note=note))

    run.line.show(counters)
    show()
    try:
        with repeating(show, _POLL_SECONDS, "training-progress"):
            yield
    finally:
        show()


def last_step(metrics: Path) -> dict[str, Any] | None:
    """The last whole line of a metrics file, of which only the end is read; None where there is none."""
    if not metrics.exists():
        return None
    with metrics.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, 2) - _LONGEST_LINE_BYTES))
        *whole, _ = stream.read().split(b"\n")
    return json.loads(whole[-1]) if whole else None


def keep_metrics(store: Store, metrics: Path, name: str) -> None:
    """Copy what a job has noted of its steps so far into the run: the lines, and TensorBoard's files of them."""
    if not metrics.exists():
        return
    store.replace(f"metrics/{name}.jsonl", metrics.read_bytes())
    for file in metrics.parent.glob("tensorboard/*"):
        # A folder of its own for each dataset: TensorBoard takes all files of a folder for one job.
        store.replace(f"metrics/tensorboard/{name}-{metrics.parent.name}/{file.name}", file.read_bytes())
