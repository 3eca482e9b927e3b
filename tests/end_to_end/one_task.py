"""The miniature with one of its tasks, whose principles are known, written so slowly that there is time to kill something."""

import json
from pathlib import Path

from recipes.miniature.world import TASKS

OVERRIDES = (
    'tasks=[{name="kilo", description="task kilo", seeds="seeds/kilo.jsonl", evaluation="evaluation/kilo.jsonl", answer={kind="exact"}}]',
    'generation.arms=["psi"]',
    "generation.flows_per_unit=8",
    "pools.small.engine.max_num_seqs=1",
    "training.checkpoint_every_steps=10",
)


def write_principles(path: Path) -> Path:
    """What the large model would find."""
    rule = {"task": "kilo", "level": "task", "kind": "solve", "text": "; ".join(TASKS["kilo"])}
    lengths = {"task": "kilo", "level": "instance", "kind": "generate", "text": "len 4-6"}
    path.write_text(f"{json.dumps(rule)}\n{json.dumps(lengths)}\n")
    return path
