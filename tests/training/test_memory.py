"""Host memory of a rank on a million rows: token files are mapped, plans are arrays, nothing of Python's is kept for a row."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.packing import row_lengths
from tests.training.build_job import ROOT
from training.prepare import TOKEN_SCHEMA

FILES, ROWS_PER_FILE, BATCH_ROWS = 10, 100_000, 1024
PROGRAM = """
import json, resource, sys
from pathlib import Path
import numpy as np, psutil
from training.config import TrainingConfig
from training.data import make_batch
from training.balance import share_bins
from training.plan import make_plan
from training.prepare import TokenFile
from training.token_rows import open_rows

rows_per_file, epochs = int(sys.argv[2]), 3.0
paths = sorted(Path(sys.argv[1]).glob("*.arrow"))
def own():
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared  # without mapped files, whose pages the system takes back at will

before = own()
data = open_rows([TokenFile(path, 1, "synthetic", rows_per_file, 0, 0, 1) for path in paths], held_out_rows=1000)
rows = data.train
plan = make_plan(rows.lengths, TrainingConfig(epochs=epochs), 0, "")
planned = own() - before
tokens = seen = 0
for index in range(plan.first_steps[1]):
    for micro_batch in share_bins(plan.step(index).bins, rows.lengths, 0, 1, 4):
        batch = make_batch(micro_batch, rows, 0, flat=False)
        tokens += int((batch.input_ids != 0).sum())
        seen += sum(map(len, micro_batch))
read = own() - before
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"rows": len(rows.lengths), "seen": seen, "tokens": tokens, "planned": planned, "read": read, "peak": peak}))
"""


def write_token_file(path: Path, lengths: np.ndarray) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, TOKEN_SCHEMA) as writer:
        for start in range(0, len(lengths), BATCH_ROWS):
            sizes = lengths[start : start + BATCH_ROWS]
            offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
            ids = pa.ListArray.from_arrays(offsets, np.ones(offsets[-1], np.int32))
            spans = pa.StructArray.from_arrays(
                [pa.array(sizes // 2), pa.array(sizes)], fields=list(TOKEN_SCHEMA.field("loss_spans").type.value_type)
            )
            loss = pa.ListArray.from_arrays(np.arange(len(sizes) + 1, dtype=np.int32), spans)
            keys = np.random.default_rng([start, int(path.stem)]).integers(0, 2**63, len(sizes)).astype(np.uint64)
            writer.write_batch(pa.record_batch([ids, loss, pa.array(keys)], schema=TOKEN_SCHEMA))


@pytest.mark.slow
def test_a_million_rows_are_planned_and_read_in_less_than_2_gib_a_rank(tmp_path):
    lengths = np.maximum(row_lengths(FILES * ROWS_PER_FILE, mean=150, longest=1000), 2)
    for number in range(FILES):
        write_token_file(tmp_path / f"{number}.arrow", lengths[number * ROWS_PER_FILE : (number + 1) * ROWS_PER_FILE])
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(ROWS_PER_FILE)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    facts = json.loads(done.stdout)
    sys.stdout.write(f"{facts}\n")
    assert facts["peak"] < 2 * 2**30
    assert facts["planned"] < 128 * facts["rows"]
    assert facts["read"] < facts["planned"] + 64 * 2**20
    assert facts["rows"] == facts["seen"] == FILES * ROWS_PER_FILE - 1000
    assert facts["tokens"] > 0.99 * lengths.sum()
