"""How fast rows are planned into bins, and how full the bins are, on log-normal lengths.

`rows_per_second` is of a whole epoch's plan on one core: permutation, packing, the order of the bins and their digest. The efficiency is
the share of the tokens of all bins that rows fill. The other side is what packing replaces: batches of rows in random order, each row
padded to the longest of its batch.
"""

import argparse
import json
import time

import numpy as np

from training.config import TrainingConfig
from training.packing import WINDOW, Ints, pack
from training.plan import make_plan

_SPREAD = 0.6
"""Standard deviation of the logarithm of the lengths."""
_PADDED_ROWS = 8


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--mean", type=int, default=150, help="mean length of a row, tokens")
    parser.add_argument("--longest", type=int, default=1000, help="longest row, tokens")
    parser.add_argument("--capacity", type=int, default=4096, help="tokens a bin holds")
    options = parser.parse_args()
    lengths = row_lengths(options.rows, options.mean, options.longest)
    config = TrainingConfig(max_tokens=options.capacity, epochs=1.0)
    started = time.perf_counter()
    plan = make_plan(lengths, config, seed=0, content="benchmark")
    seconds = time.perf_counter() - started
    packed = int(lengths.sum()) / (len(plan.epoch_bins(0)) * options.capacity)
    padded = padded_efficiency(lengths)
    figures = {
        "benchmark": "packing",
        "rows": options.rows,
        "window": WINDOW,
        "rows_per_second": round(options.rows / seconds),
        "efficiency": round(packed, 5),
        "efficiency_by_window": windows_efficiency(lengths, options.capacity),
        "padded_efficiency": round(padded, 5),
        "ratio": round(packed / padded, 3),
        "ratio_to": f"efficiency of batches of {_PADDED_ROWS} rows in random order, padded to the longest of each",
    }
    print(json.dumps(figures))


def row_lengths(rows: int, mean: int, longest: int) -> Ints:
    """Log-normal lengths in tokens, at least 1 and at most `longest`."""
    drawn = np.random.default_rng(0).lognormal(np.log(mean) - _SPREAD**2 / 2, _SPREAD, rows)
    return np.clip(drawn.round(), 1, longest).astype(np.int32)


def windows_efficiency(lengths: Ints, capacity: int) -> dict[str, float]:
    """Window size to efficiency, for windows around the one that is used."""
    shares: dict[str, float] = {}
    for window in (1_000, 10_000, WINDOW, len(lengths)):
        bins = pack(np.arange(len(lengths), dtype=np.int32), lengths, capacity, window)
        shares[str(window)] = round(int(lengths.sum()) / (len(bins) * capacity), 5)
    return shares


def padded_efficiency(lengths: Ints) -> float:
    """Share of real tokens in padded batches."""
    starts = np.arange(0, len(lengths), _PADDED_ROWS)
    sizes = np.diff(starts, append=len(lengths))
    return int(lengths.sum()) / int((np.maximum.reduceat(lengths, starts) * sizes).sum())


if __name__ == "__main__":
    main()
