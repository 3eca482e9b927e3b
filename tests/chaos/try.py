import sys, time
from pathlib import Path
import tempfile
from tests.chaos.nodes import ray_nodes
from tests.chaos.story import *
from tests.chaos.recipes import *
from tests.chaos.faults import *
from tests.chaos.disk import own_disk
from tests.chaos.checker import check_run

seed, rows, count = map(int, sys.argv[1:4])
poison = len(sys.argv) > 4
tmp = Path(tempfile.mkdtemp(prefix="chaos"))
recipe = scripted_recipe(tmp, rows, poison=poison)
with own_disk(tmp / "run") as disk, ray_nodes(2, 3) as nodes:
    faults = draw_faults(seed, int(rows / 2), count) if count else []
    for f in faults:
        print(f)
    st = Story(nodes, tmp / "run", psi_command(recipe, nodes, tmp / "run"), faults, disk)
    t = time.time()
    try:
        print("code", st.tell(), time.time() - t)
    finally:
        print(tmp, st.done, st.refused, st.restarts, len(st._units))
        v = check_run(tmp / "run", RUN_ID, rows)
        print(len(v), v[:20])
        print(st.said()[-3000:])
