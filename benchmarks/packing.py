"""How fast rows are planned into bins, and how full the bins are, on log-normal lengths.

The efficiency is the share of the tokens of all bins that rows fill. The other side is what packing replaces: batches of rows in
random order, each row padded to the longest of its batch.
"""

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np

from training.config import TrainingConfig
from training.packing import WINDOW, pack
from training.plan import make_plan

_SPREAD = 0.6
"""Standard deviation of the logarithm of the lengths."""
_PADDED_ROWS = 8


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--mean", type=float, default=150.0, help="mean length of a row, tokens")
    parser.add_argument("--capacity", type=int, default=4096, help="tokens a bin holds")
    options = parser.parse_args()
    lengths = row_lengths(options.rows, options.mean, options.capacity)
    started = time.perf_counter()
    plan = make_plan(lengths, TrainingConfig(max_tokens=options.capacity, epochs=1.0), seed=0, content="benchmark")
    seconds = time.perf_counter() - started
    packed = sum(lengths) / (len(plan.epochs[0]) * options.capacity)
    padded = padded_efficiency(lengths)
    figures = {
        "benchmark": "packing",
        "rows": options.rows,
        "rows_per_second": round(options.rows / seconds),
        "efficiency": round(packed, 5),
        "efficiency_by_window": windows_efficiency(lengths, options.capacity),
        "padded_efficiency": round(padded, 5),
        "ratio": round(packed / padded, 3),
        "ratio_to": f"efficiency of batches of {_PADDED_ROWS} rows in random order, padded to the longest of each",
    }
    print(json.dumps(figures))


def row_lengths(rows: int, mean: float, capacity: int) -> list[int]:
    """Log-normal lengths in tokens, at least 1 and at most `capacity`."""
    drawn = np.random.default_rng(0).lognormal(np.log(mean) - _SPREAD**2 / 2, _SPREAD, rows)
    return np.clip(drawn.round(), 1, capacity).astype(int).tolist()


def windows_efficiency(lengths: Sequence[int], capacity: int) -> dict[str, float]:
    """Window size to efficiency, for windows around the one that is used."""
    shares: dict[str, float] = {}
    for window in (WINDOW // 10, WINDOW, WINDOW * 10):
        bins = sum(1 for _ in pack(range(len(lengths)), lengths, capacity, window))
        shares[str(window)] = round(sum(lengths) / (bins * capacity), 5)
    return shares


def padded_efficiency(lengths: Sequence[int]) -> float:
    """Share of real tokens in padded batches."""
    batches = [lengths[start : start + _PADDED_ROWS] for start in range(0, len(lengths), _PADDED_ROWS)]
    return sum(lengths) / sum(max(batch) * len(batch) for batch in batches)


if __name__ == "__main__":
    main()
