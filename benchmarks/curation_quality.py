"""What curation finds: recall of each stage on planted copies by kind, and how many unrelated texts of the same source it drops.

Planted are changed copies of evaluation inputs (contamination), of seeds (copy) and of earlier rows (duplicate; semantic is the opt-in
stage without near duplicates), and damaged texts (bounds); they go through the same fold as in a run. Changed copies of
demonstrations (demo_leak) meet the blacklist of a bundle that shows three texts, one bundle after the other. Precision is that of a
stage that sees as many unrelated texts as copies of all kinds. The ratio is what looking closer than for equal inputs is worth.
"""

import argparse
import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks.support.planted import KINDS, sources
from generation.config import AnswerConfig, CurationConfig, GenerationConfig, TaskConfig
from generation.curation.fold import CausalFold
from generation.curation.quotas import Quotas
from generation.instances.demo_leak import find_demo_leak
from generation.instances.plan import Bundle
from generation.rows import Row, row_id
from generation.task import Seed, Task

PLAIN = CurationConfig(length_factor=None)
SEMANTIC = CurationConfig(length_factor=None, near_duplicate=None, semantic_duplicate=0.9)
BOUNDS = CurationConfig()
_NUM_SEEDS = 60
_SHOWN = 3
_MAX_BUNDLES = 40
_DAMAGES: Mapping[str, Callable[[str, random.Random], str]] = {
    "looping": lambda text, _: f"{text} {text} {text}",
    "foreign script": lambda text, _: "".join(chr(0x430 + ord(c) % 32) if c.isalpha() else c for c in text),
    "damaged": lambda text, _: text[:-1] + "\ufffd",
    "far too long": lambda text, _: " ".join(f"{text} {word}" for word in text.split()),
}


@dataclass(frozen=True)
class Material:
    """Texts of one source: no text is in two parts."""

    seeds: Sequence[str]
    originals: Sequence[str]
    clean: Sequence[str]


class Stage(NamedTuple):
    """One measurement: what is planted, in which surroundings, and which stages of the fold count as finding it."""

    found_at: frozenset[str]
    kinds: Mapping[str, Callable[[str, random.Random], str]] = KINDS
    config: CurationConfig = PLAIN
    as_seeds: bool = False
    as_evaluation: bool = False
    as_rows: bool = False


STAGES = {
    "contamination": Stage(frozenset({"contamination"}), as_evaluation=True),
    "copy": Stage(frozenset({"copy"}), as_seeds=True),
    "duplicate": Stage(frozenset({"exact_duplicate", "near_duplicate"}), as_rows=True),
    "semantic": Stage(frozenset({"exact_duplicate", "semantic_duplicate"}), config=SEMANTIC, as_rows=True),
    "bounds": Stage(frozenset({"bounds"}), _DAMAGES, BOUNDS),
}


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=400, help="copies of each kind, and unrelated texts")
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("PSI_SHARED_DIR", "../shared")))
    options = parser.parse_args()
    found = {name: measure(texts) for name, texts in sources(options.shared, 2 * options.items + _NUM_SEEDS).items()}
    closer = fmean(stages["contamination"]["recall_of_all"] for stages in found.values())
    equal = fmean(stages["contamination"]["equal"] for stages in found.values())
    figures = {
        "benchmark": "curation_quality",
        "sources": found,
        "ratio": round(closer / equal, 3),
        "ratio_to": "share of the copies of evaluation inputs that are equal after normalising",
    }
    print(json.dumps(figures))


def measure(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each stage on the texts of one source; with few texts (self_instruct has 175), fewer are planted."""
    half = (len(texts) - _NUM_SEEDS) // 2
    assert half > 0, "a source needs more than the seeds"
    material = Material(texts[:_NUM_SEEDS], texts[_NUM_SEEDS : _NUM_SEEDS + half], texts[_NUM_SEEDS + half :])
    measured = {name: measure_stage(stage, material) for name, stage in STAGES.items()}
    return measured | {"demo_leak": _measure_demo_leak(material)}


def measure_stage(stage: Stage, material: Material) -> dict[str, Any]:
    """One stage; unrelated texts are shown to it after the copies of each kind."""
    rng = random.Random(2)
    task = _task([*material.seeds, *(material.originals if stage.as_seeds else ())])
    evaluation = material.originals if stage.as_evaluation else ()
    before = material.originals if stage.as_rows else ()
    found: dict[str, list[bool]] = {}
    false: list[bool] = []
    for kind, change in stage.kinds.items():
        copies = [change(text, rng) for text in material.originals]
        fold = CausalFold(stage.config, task, [tuple(evaluation)], Quotas(10**6))
        fold.fold(_rows(0, before))
        found[kind] = [verdict.stage in stage.found_at for verdict in fold.fold(_rows(1, copies))]
        false += [verdict.stage in stage.found_at for verdict in fold.fold(_rows(2, material.clean))]
    return _figures(found, false, material)


def _measure_demo_leak(material: Material) -> dict[str, Any]:
    """The last texts of `originals` that do not fill a bundle, and those beyond the last bundle, are left out."""
    rng, chance = random.Random(2), GenerationConfig(accepted_rows=1).demo_leak
    found: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    false: list[bool] = []
    for first in range(0, len(material.originals) - _SHOWN + 1, _SHOWN)[:_MAX_BUNDLES]:
        shown = material.originals[first : first + _SHOWN]
        bundle = Bundle("b", (), "\n".join(["Write one input.", *shown]), "")
        leak = find_demo_leak(_task([*material.seeds, *shown]), bundle, chance)
        for kind, change in KINDS.items():
            found[kind] += [leak.reason(change(text, rng)) is not None for text in shown]
        false += [leak.reason(text) is not None for text in material.clean]
    return _figures(found, false, material)


def _figures(found: Mapping[str, list[bool]], false: Sequence[bool], material: Material) -> dict[str, Any]:
    every = [hit for hits in found.values() for hit in hits]
    recall, wrong = fmean(every), fmean(false)
    return {
        "recall": {kind: round(fmean(hits), 4) for kind, hits in found.items()},
        "recall_of_all": round(recall, 4),
        "precision": round(recall / (recall + wrong), 4) if recall else None,
        "unrelated_dropped": round(wrong, 4),
        "copies_of_each_kind": len(every) // len(found),
        "unrelated": len(material.clean),
        "equal": round(1 / len(found), 4),
    }


def _task(seeds: Sequence[str]) -> Task:
    config = TaskConfig(name="t", description="Planted.", answer=AnswerConfig(kind="open"), seeds="none")
    return Task(config, tuple(Seed(str(i), text, "1", "", "mine") for i, text in enumerate(seeds)))


def _rows(part: int, texts: Sequence[str]) -> list[Row]:
    """A unit of its own for each, so that the order among them counts and nothing else."""
    units = [f"{part:06d}-{i:06d}" for i in range(len(texts))]
    return [
        Row(row_id("benchmark", unit, 0), unit, 0, "t", "instance", input=text, answer="1")
        for unit, text in zip(units, texts, strict=True)
    ]


if __name__ == "__main__":
    main()
