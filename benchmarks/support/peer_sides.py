"""One side of `benchmarks.peers` in a process of its own: prints `ready` where it waits for others, and its figures as the last line.

python -m benchmarks.support.peer_sides psi FOLDER
python -m benchmarks.support.peer_sides llm FOLDER NUMBER COUNT
python -m benchmarks.support.peer_sides ray-data FOLDER REPLICAS
"""

import io
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.support.clockwork import LONGEST

REQUESTS = "requests.json"
STEADY = (0.15, 0.85)
"""The part of the tokens between which a side is neither filling its engines nor draining them."""
_BATCH = 64
_SETTINGS: dict[str, Any] = {
    "max_model_len": 704,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 4096,
    "kv_cache_memory_bytes": 2**30,
    "gpu_memory_utilization": 0.2,
    "enable_prefix_caching": True,
}
"""Of the peers' engines: length and memory as in the recipe of ours, and what `LLM` takes by itself on a CPU. Ray Data LLM would run 128 sequences
in steps of 2,048 tokens if it were not told. All else is vLLM's default; ours follows its presets."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How many tokens of finished requests a side had when, in seconds since its start, and whether it was done."""

    seconds: float
    output_tokens: int
    ended: bool = False


def figures_of(marks: Sequence[Mark], requests: int) -> dict[str, Any]:
    """What a side did in all, and how fast it was between the marks nearest to `STEADY`."""
    last = marks[-1]
    start, end = (next(mark for mark in marks if mark.output_tokens >= share * last.output_tokens) for share in STEADY)
    steady = (end.output_tokens - start.output_tokens) / (end.seconds - start.seconds)
    whole = {"requests": requests, "seconds": last.seconds, "output_tokens": last.output_tokens}
    return {**whole, "steady_tokens_per_second": steady}


def psi(folder: Path) -> dict[str, Any]:
    """The generation stage: pool, coordinator, units, curation.

    Time runs from all replicas ready to the target visible and curated; what is in flight then is not counted. Its marks are what the
    replicas say in their beats: commits would not do, since units open and close together in a job this short. Writes the requests that
    it made, for the others to repeat.
    """
    from benchmarks.support.clockwork_recipe import requests_of
    from cluster.arm import ArmFold
    from cluster.coordinator_link import coordinator_actor
    from cluster.generation_loop import GenerationLoop
    from cluster.pools import Pool
    from cluster.progress import Counters
    from cluster.session import ray_session

    run, arm = _arm(folder)
    pool_config, cluster = run.loaded.recipe.pools.small, run.loaded.recipe.cluster
    marks: list[Mark] = []
    with ray_session(cluster), Pool("small", pool_config, energy=run.energy) as pool:
        pool.start(wait_for=pool_config.replicas)
        with coordinator_actor(arm.store, cluster.lease_seconds) as link:
            began = time.perf_counter()

            def show(counters: Counters) -> None:
                ended = counters.target is not None and counters.done >= counters.target
                if not (ended and marks and marks[-1].ended):
                    tokens = counters.spent.output_tokens if counters.spent else 0
                    marks.append(Mark(time.perf_counter() - began, tokens, ended))

            GenerationLoop(arm, ArmFold(arm), link, show).work(lambda: pool)
            made = link.call("progress").tokens.values()
    (folder / REQUESTS).write_text(json.dumps(requests_of(arm)), encoding="utf-8")
    tokens_per_request = sum(one["output_tokens"] for one in made) / sum(one["requests"] for one in made)
    return figures_of(marks, round(marks[-1].output_tokens / tokens_per_request))


def _arm(folder: Path) -> tuple[Any, Any]:
    """The run of a recipe in an output folder of its own, and its only arm."""
    from cluster.generate import arm_run
    from cluster.open_run import OpenRun
    from cluster.progress import ProgressLine
    from cluster.recipe import load_recipe, load_tasks
    from generation.arms import arm_spec
    from generation.prompts.prompt_set import load_prompt_set

    loaded = load_recipe(folder, [f"run.output={tempfile.mkdtemp(dir=folder)}"])
    prompts = load_prompt_set(loaded.recipe.prompts, loaded.folder)
    run = OpenRun.begin(loaded, load_tasks(loaded), prompts, ProgressLine(io.StringIO(), time.monotonic))
    return run, arm_run(run, arm_spec("direct"), [])


def llm(folder: Path, number: int, count: int, wait: Callable[[], None]) -> dict[str, Any]:
    """`LLM.generate` with texts in and out, in this process, on its share of the cores and of the requests."""
    cores = sorted(os.sched_getaffinity(0))
    threads = max(1, len(cores) // count)
    os.sched_setaffinity(0, cores[number * threads : (number + 1) * threads])
    os.environ |= {"OMP_NUM_THREADS": str(threads), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    import torch
    from vllm import LLM, SamplingParams

    torch.set_num_threads(threads)
    model = LLM(str(folder / "model"), **_SETTINGS)
    prompts = _prompts(folder)[number * _share(folder, count) : (number + 1) * _share(folder, count)]
    marks, tokens, step = [Mark(0.0, 0)], 0, model.llm_engine.step

    def watched() -> list[Any]:
        nonlocal tokens
        outputs = step()
        ended: list[Any] = [output for output in outputs if output.finished]
        if ended:
            tokens += sum(len(output.outputs[0].token_ids) for output in ended)
            marks.append(Mark(time.perf_counter() - began, tokens))
        return outputs

    model.llm_engine.step = watched
    wait()
    began = time.perf_counter()
    outputs = model.generate(prompts, SamplingParams(max_tokens=LONGEST), use_tqdm=False)
    texts = [output.outputs[0].text for output in outputs]
    assert all(texts)
    return figures_of(marks, len(outputs))


def ray_data(folder: Path, replicas: int) -> dict[str, Any]:
    """Ray Data LLM with texts in and out. Time runs from the first batch that comes out, so that its start costs it nothing."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    config = vLLMEngineProcessorConfig(
        model_source=str(folder / "model"),
        engine_kwargs=dict(_SETTINGS),
        batch_size=_BATCH,
        concurrency=replicas,
        placement_group_config={"bundles": [{"CPU": 1}]},
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,  # on by default, costs time, and needs Ray Serve installed
        runtime_env={"env_vars": _variables(replicas)},
    )
    processor: Any = build_processor(
        config,
        preprocess=lambda row: {
            "prompt": row["prompt"],
            "sampling_params": {"max_tokens": LONGEST, "temperature": 1.0},
        },
        postprocess=lambda row: {"text": row["generated_text"], "output_tokens": row["num_generated_tokens"]},
    )
    prompts = _prompts(folder)
    dataset = processor(
        ray.data.from_items([{"prompt": prompt} for prompt in prompts], override_num_blocks=_blocks(prompts))
    )
    batches = dataset.iter_batches(batch_size=None, prefetch_batches=0)
    came = [(time.perf_counter(), len(batch["text"]), int(sum(batch["output_tokens"]))) for batch in batches]
    ray.shutdown()
    assert sum(rows for _, rows, _ in came) == len(prompts)
    totals = itertools.accumulate(tokens for _, _, tokens in came)
    marks = [Mark(at - came[0][0], total - came[0][2]) for (at, _, _), total in zip(came, totals, strict=True)]
    return figures_of(marks, len(prompts) - came[0][1])


def _variables(replicas: int) -> dict[str, str]:
    """One replica takes both cores, bound as vLLM does by itself; of several each has one thread."""
    several = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return {"VLLM_LOGGING_LEVEL": "ERROR", **(several if replicas > 1 else {})}


def _blocks(prompts: list[str]) -> int:
    return max(1, len(prompts) // _BATCH)


def _share(folder: Path, count: int) -> int:
    return len(_prompts(folder)) // count


def _prompts(folder: Path) -> list[str]:
    return json.loads((folder / REQUESTS).read_text(encoding="utf-8"))


def _wait() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def main() -> None:
    """Run the side that the arguments name."""
    side, folder, numbers = sys.argv[1], Path(sys.argv[2]), [int(value) for value in sys.argv[3:]]
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if side == "psi":
        figures = psi(folder)
    elif side == "llm":
        figures = llm(folder, numbers[0], numbers[1], _wait)
    else:
        figures = ray_data(folder, numbers[0])
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
