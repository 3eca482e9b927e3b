"""What a request costs beside its engine: prompts, flows, votes, screens, tokenizer, Arrow and commits of the miniature's stage, in CPU time.

One turn runs on vLLM and keeps all answers. In the turns after it an engine gives these at once, drawn anew for each prompt, so that what is
left is our own work. It runs on threads beside the engine's, and where both share an interpreter the engine waits for nearly all of it.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
from collections.abc import Sequence
from itertools import islice
from typing import Any

from benchmarks.support.miniature import miniature_stage
from benchmarks.support.stage import Clock
from generation.engines.base import Completion, EngineStats, Finished, Prepared, Request
from generation.engines.vllm import VllmModel
from generation.pump import Pump

_ENDED_PER_STEP = 64
"""About as many as end in a step of 1,024 sequences."""


class Remembered:
    """An engine around vLLM's that gives the answers it remembers instead, once `playing`."""

    def __init__(self, model: VllmModel) -> None:
        self.max_in_flight = model.max_in_flight
        self.playing = False
        self.requests = 0
        self._model = model
        self._draw = random.Random(0)
        self._asked: dict[int, Prepared] = {}
        self._known: dict[tuple[str, str], list[Any]] = {}

    def start(self) -> None:
        """Build the engine."""
        self._model.start()

    def prepare(self, request: Request) -> Prepared:
        """Encode one request."""
        return self._model.prepare(request)

    def add(self, request_id: int, prepared: Prepared) -> None:
        """Queue a request."""
        self.requests += 1
        self._asked[request_id] = prepared
        if not self.playing:
            self._model.add(request_id, prepared)

    def step(self) -> list[Finished]:
        """Advance, or remember."""
        if self.playing:
            return [self._again(request_id) for request_id in list(islice(self._asked, _ENDED_PER_STEP))]
        finished = self._model.step()
        for one in finished:
            request = self._asked.pop(one.request_id).request
            self._known.setdefault((request.prefix, request.text), []).append(one.payload)
        return finished

    def decode(self, finished: Sequence[Finished]) -> list[Completion]:
        """Turn finished requests into completions."""
        return self._model.decode(finished)

    def abort(self, request_ids: Sequence[int]) -> None:
        """Forget requests."""
        self._model.abort(request_ids)

    def stats(self) -> EngineStats:
        """Counters so far."""
        return self._model.stats()

    def close(self) -> None:
        """Free everything."""
        self._model.close()

    def _again(self, request_id: int) -> Finished:
        request = self._asked.pop(request_id).request
        return Finished(request_id, self._draw.choice(self._known[request.prefix, request.text]))


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=6, help="on remembered answers, beside a warm-up")
    parser.add_argument("--units", type=int, default=64, help="of a turn, 64 flows each")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # read once, when torch loads its OpenMP
    config, stage = miniature_stage()
    engine = Remembered(VllmModel(config))
    pump = Pump(engine)
    pump.start()
    pump.wait_ready()

    def turn() -> float:
        before = engine.requests
        with tempfile.TemporaryDirectory() as folder:
            clock: Clock = stage.run(pump, engine.max_in_flight, folder, options.units)[0]
        return 1e6 * clock.cpu_seconds / (engine.requests - before)

    with_engine, engine.playing = turn(), True
    beside = [turn() for _ in range(options.turns + 1)][1:]
    pump.stop()
    figures: dict[str, Any] = {
        "benchmark": "flow_cost",
        "microseconds_per_request": round(statistics.median(beside), 1),
    }
    figures["by_turn"] = [round(one, 1) for one in beside]
    figures["microseconds_with_engine"] = round(with_engine)
    figures["ratio"] = round(figures["microseconds_per_request"] / with_engine, 4)
    figures["ratio_to"] = "CPU time of a request with the engine, one thread, in the same process"
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
