"""A recipe for the clockwork model, and the requests that a run of it made: prompts of 272 tokens in 64 groups, rows all accepted."""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from benchmarks.support.clockwork import LONGEST, NUM_CHOICES, NUM_LENGTHS, PROMPT_WORDS, Shape, write_model
from cluster.arm import ArmRun
from generation.storage import Store

BUNDLES = 32
"""Each with a prefix for drafts and one for answers."""
_SHOWN = 6
_SEED_WORDS = (18, 21)
_INPUT_WORDS = 8
_OWN_WORDS = 31

# A prompt: 240 tokens of prefix, <bos><|user|> among them, then 32: what tells it from others of its bundle, fillers, and the length. A
# cache of blocks of 32 holds 224 of them, one of blocks of 128 holds 128, as it does for any prefix of 128 to 255 tokens.
_PREFIX = "{% for seed in demonstrations %} {{ seed.input }} {{ seed.output }}{% endfor %} w0 w1 now"
_FILL = " ".join(PROMPT_WORDS[: _OWN_WORDS - 1])
_DRAFT = f" w{{{{ difficulty }}}} {_FILL} length{{{{ difficulty }}}}"
_ANSWER = (
    "{% set words = input.split() %}{% set first = words[0].split('x')[1] | int %}"
    f"{{% set second = words[1].split('x')[1] | int %}} {{{{ input }}}}"
    f"{{% for word in range({_OWN_WORDS} - words | length) %}} w{{{{ word }}}}{{% endfor %}}"
    f" length{{{{ first * {NUM_LENGTHS // NUM_CHOICES} + second % {NUM_LENGTHS // NUM_CHOICES} }}}}"
)
_PATTERNS = rf"""
input = '\A(?P<input>\S+(?: \S+){{1,{_INPUT_WORDS - 1}}})(?: .*)?\Z'
answer = '\A(?P<answer>.+)\Z'
"""
_TEMPLATES = {
    "draft_prefix": "write" + _PREFIX,
    "answer_prefix": "solve" + _PREFIX,
    "draft_text": _DRAFT,
    "answer_text": _ANSWER,
    "student": "{{ input }}",
    "student_answer": "{{ answer }}",
}


def write_recipe(folder: Path, shape: Shape, lengths: Sequence[int], rows: int) -> None:
    """Write model, prompts, seeds and recipe into a folder, for two replicas of one thread each."""
    write_model(folder / "model", shape, lengths)
    (folder / "prompts").mkdir()
    (folder / "prompts" / "patterns.toml").write_text(_PATTERNS, encoding="utf-8")
    for name, text in _TEMPLATES.items():
        (folder / "prompts" / f"{name}.jinja").write_text(text, encoding="utf-8")
    draw = random.Random(0)
    seeds = [[" ".join(draw.choices(PROMPT_WORDS, k=count)) for count in _SEED_WORDS] for _ in range(_SHOWN * BUNDLES)]
    lines = (json.dumps({"input": given, "output": answer}) for given, answer in seeds)
    (folder / "seeds.jsonl").write_text("\n".join(lines), encoding="utf-8")
    difficulties = json.dumps([str(number) for number in range(NUM_LENGTHS)])
    values = {"rows": rows, "longest": LONGEST, "bundles": BUNDLES, "difficulties": difficulties, "shown": _SHOWN}
    (folder / "recipe.toml").write_text(_RECIPE.format(**values), encoding="utf-8")


_RECIPE = """
prompts = "prompts"

[run]
name = "clockwork"

[[tasks]]
name = "words"
description = "words"
seeds = "seeds.jsonl"
answer = {{ kind = "open" }}

[pools.small]
replicas = 2
cpus = 0.75

[pools.small.engine]
kind = "vllm"
model = "model"
max_model_len = 704
kv_cache_bytes = 1_073_741_824
gpu_memory_utilization = 0.2
threads = 1

[principles]
levels = {{}}

[generation]
accepted_rows = {rows}
arms = ["direct"]
bundles = {bundles}
direct_demonstrations = {shown}
flows_per_unit = 64
difficulties = {difficulties}
draft = {{ max_output_tokens = {longest}, temperature = 1.0 }}
answer = {{ max_output_tokens = {longest}, temperature = 1.0 }}

[curation]
length_factor = 50.0

[cluster]
lease_seconds = 16
"""


def requests_of(run: ArmRun) -> list[str]:
    """Texts of all prompts of the rows that a run wrote, with the chat template around them: draft, answer, draft, ..."""
    bundles = {bundle.bundle_id: bundle for work in run.work for bundle, _ in work.kinds}
    drafts = {cell.cell_id: cell.draft_text for work in run.work for _, cells in work.kinds for cell in cells}
    prompts: list[str] = []
    for row in _rows(run.store):
        bundle = bundles[row["bundle"]]
        answer = run.context.prompts.render("answer_text", task=run.work[0].task, input=row["input"])
        prompts += [bundle.draft_prefix + drafts[row["cell"]], bundle.answer_prefix + answer]
    return [f"<bos><|user|>{prompt}" for prompt in prompts]


def _rows(store: Store) -> Iterator[dict[str, str]]:
    for name in sorted(store.names("rows/round-0")):
        table = pa.ipc.open_file(pa.BufferReader(store.read(f"rows/round-0/{name}"))).read_all()
        yield from table.select(["bundle", "cell", "input"]).to_pylist()
