"""How fast the ledger answers scripted replicas: each leases units, works for a while by a simulated clock, and commits them.

One replica in a thousand dies after a lease, and its units go to others. The other side is the same units with a tenth of the replicas,
so the ratio shows what a replica more costs.
"""

import argparse
import heapq
import json
import random
import time

from cluster.ledger import Ledger
from generation.unit_places import UnitPlaces

_BUNDLES = 8
_UNITS_PER_RECORD = 500
_LEASE_SECONDS = 600.0
_UNIT_SECONDS = (20.0, 60.0)
_DEATHS = 0.001
_ATTEMPTS = 5


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=1_000)
    parser.add_argument("--units", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=2, help="how often both sides take their turn")
    options = parser.parse_args()
    few = max(1, options.replicas // 10)
    pairs, seconds = {options.replicas: 0, few: 0}, {options.replicas: 0.0, few: 0.0}
    for _ in range(options.rounds):
        for replicas in (options.replicas, few):
            done, spent = play(replicas, options.units)
            pairs[replicas] += done
            seconds[replicas] += spent
    rates = {replicas: pairs[replicas] / seconds[replicas] for replicas in pairs}
    figures = {
        "benchmark": "coordinator",
        "replicas": options.replicas,
        "units": options.units,
        "pairs_per_second": round(rates[options.replicas]),
        "ratio": round(rates[options.replicas] / rates[few], 3),
        "ratio_to": f"lease and commit pairs per second with {few} replicas",
    }
    print(json.dumps(figures))


def play(replicas: int, units: int) -> tuple[int, float]:
    """Let replicas work until all units are committed; returns the pairs of lease and commit, and the seconds in the ledger."""
    ledger, rng = Ledger(UnitPlaces(), _LEASE_SECONDS, _ATTEMPTS), random.Random(0)
    for start in range(0, units, _UNITS_PER_RECORD):
        ledger.add_record(f"b{start // _UNITS_PER_RECORD % _BUNDLES}", min(_UNITS_PER_RECORD, units - start))
    free_at = [(rng.uniform(0, 1), f"r{number}") for number in range(replicas)]
    heapq.heapify(free_at)
    held: dict[str, tuple[str, ...]] = {}
    pairs = 0
    spent = 0.0
    while ledger.num_free or ledger.num_leased:
        now, replica = heapq.heappop(free_at)
        dies = replica in held and rng.random() < _DEATHS
        started = time.perf_counter()
        if dies:
            ledger.forget(replica, "killed", blame=True)
            del held[replica]
        elif replica in held:
            ledger.commit(replica, held.pop(replica), f"{replica}-{pairs}", now)
            pairs += 1
        grant = ledger.lease(replica, now)
        spent += time.perf_counter() - started
        if grant is not None:
            held[replica] = grant.units
        work = rng.uniform(*_UNIT_SECONDS) * (len(grant.units) if grant is not None else 1)
        heapq.heappush(free_at, (now + work, replica))
    return pairs, spent


if __name__ == "__main__":
    main()
