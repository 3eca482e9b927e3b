"""The experiments of `benchmarks.gpu`: each starts its engines, yields a line for each of its arms, and is called in a process of its own."""

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.overhead import figures_of, in_turns
from benchmarks.support.gpu_engines import SHARE, Place, arguments_of, served
from benchmarks.support.gpu_load import MAX_MODEL_LEN, Load, Meter, Run, drive_async, drive_engine, make_load
from benchmarks.support.gpu_models import LARGE, SMALL
from benchmarks.support.llama30m_stage import DrawnLengths, llama30m_stage
from benchmarks.support.recorder import Recorder, forget_prefixes
from generation.engines.config import VllmEngine
from generation.engines.vllm import VllmModel

Lines = Iterator[dict[str, Any]]
_SMALL_BATCH, _LARGE_BATCH = 1024, 512


def outputs(place: Place) -> Lines:
    """What the front half of vLLM costs: texts or ids, every token or the end, against its core spoken to as PSI does."""
    from vllm.sampling_params import RequestOutputKind as Kind

    raw = {"skip_tokenizer_init": False}
    with served(arguments_of(place, SMALL, raw, max_num_seqs=_SMALL_BATCH)) as one:
        one.run(_SMALL_BATCH, waves=1.1)  # warms up
        for batch in (_SMALL_BATCH, _SMALL_BATCH // 2, _SMALL_BATCH // 4):
            yield place.line(SMALL, f"core, ids, final, batch {batch}", one.run(batch))
        for text, kind in ((False, Kind.FINAL_ONLY), (True, Kind.FINAL_ONLY), (True, Kind.CUMULATIVE)):
            forget_prefixes(one.engine)
            load = make_load(round(1.5 * _SMALL_BATCH))
            run = drive_engine(one.engine, one.meter, load, _SMALL_BATCH, output_kind=kind, detokenize=text)
            yield place.line(SMALL, f"LLMEngine, {'text' if text else 'ids'}, {kind.name.lower()}", run)


def stage(place: Place) -> Lines:
    """The generation stage with PSI's own settings against bare vLLM on the same requests, as in `benchmarks.overhead`."""
    yield from _stage(place, pairs=3, with_default=False, share=SHARE)


def stage_default(place: Place) -> Lines:
    """The same, against `LLM.generate` with vLLM's defaults in an engine of its own; both hold half of the GPU."""
    yield from _stage(place, pairs=2, with_default=True, share=SHARE / 2)


def _stage(place: Place, pairs: int, share: float, *, with_default: bool) -> Lines:
    folder = place.models / SMALL
    config = VllmEngine(model=str(folder), max_model_len=1024, gpu_memory_utilization=share)
    recorder = Recorder(VllmModel(config), DrawnLengths())
    llm = partial(_llm, str(folder), share) if with_default else None
    sides = in_turns(llama30m_stage(folder, flows_per_unit=8), recorder, llm, pairs, units=384)
    figures = figures_of(sides)
    etas = {key: figures[key] for key in ("eta_best", "eta_default") if key in figures}
    yield {"model": SMALL, "arm": "stage", **etas, "cached_tokens_equal": figures["cached_tokens_equal"]} | {
        side: figures[side] for side in ("psi", "best", "default") if side in figures
    }


def _llm(folder: str, share: float) -> Any:
    from vllm import LLM

    return LLM(folder, gpu_memory_utilization=share, max_model_len=1024)


def groups(place: Place) -> Lines:
    """How many prefixes are in use at a time (does the L2 cache keep a few?), and how many sequences are enough."""
    with served(arguments_of(place, LARGE, max_num_seqs=_LARGE_BATCH)) as one:
        one.run(_LARGE_BATCH, waves=1.1)
        for count in (1, 4, 16, 64):
            yield place.line(LARGE, f"{count} prefixes", one.run(_LARGE_BATCH, count))
        for batch in (_LARGE_BATCH // 2, _LARGE_BATCH // 4):
            yield place.line(LARGE, f"4 prefixes, batch {batch}", one.run(batch, waves=2))


def blocks(place: Place) -> Lines:
    """Tokens in a block of the KV cache."""
    for size in (16, 64):
        with served(arguments_of(place, LARGE, max_num_seqs=_LARGE_BATCH, block_size=size)) as one:
            one.run(_LARGE_BATCH, waves=1.1)
            yield place.line(LARGE, f"blocks of {size}, 4 prefixes", one.run(_LARGE_BATCH))


def kv_fp8(place: Place) -> Lines:
    """Keys and values in 8 bits."""
    with served(arguments_of(place, LARGE, max_num_seqs=_LARGE_BATCH, kv_cache_dtype="fp8")) as one:
        one.run(_LARGE_BATCH, waves=1.1)
        yield place.line(LARGE, "fp8 KV cache, 4 prefixes", one.run(_LARGE_BATCH), kv_bytes=1)


def large_batch(place: Place) -> Lines:
    """Twice as many sequences of the larger model."""
    with served(arguments_of(place, LARGE, max_num_seqs=1024)) as one:
        one.run(1024, waves=1.1)
        yield place.line(LARGE, "4 prefixes, batch 1024", one.run(1024))


def defaults(place: Place) -> Lines:
    """What vLLM gives those who do not ask as `LLM` does: 128 sequences and 2,048 tokens a step."""
    raw = {"max_cudagraph_capture_size": None}  # which vLLM then sets to 256
    for model in (SMALL, LARGE):
        with served(arguments_of(place, model, raw, max_num_seqs=128, max_num_batched_tokens=2048)) as one:
            one.run(144, waves=2)
            yield place.line(model, "core, 128 sequences and 2,048 tokens a step", one.run(144, waves=5))


def graphs(place: Place) -> Lines:
    """Up to how many tokens of a step CUDA graphs are captured; `outputs` has the same with PSI's own setting."""
    for cap in (512, _SMALL_BATCH, 2 * _SMALL_BATCH):
        raw = {"max_cudagraph_capture_size": cap}
        with served(arguments_of(place, SMALL, raw, max_num_seqs=_SMALL_BATCH)) as one:
            one.run(_SMALL_BATCH, waves=1.1)
            yield place.line(SMALL, f"core, graphs up to {cap}", one.run(_SMALL_BATCH))


def in_process(place: Place) -> Lines:
    """The engine core in the process that feeds it."""
    with served(arguments_of(place, SMALL, max_num_seqs=_SMALL_BATCH), multiprocess=False) as one:
        one.run(_SMALL_BATCH, waves=1.1)
        yield place.line(SMALL, "core in this process, ids, final", one.run(_SMALL_BATCH))


def async_engine(place: Place) -> Lines:
    """`AsyncLLM` with statistics and every token's text, as Ray Data LLM uses it: with vLLM's defaults, and with PSI's settings."""
    arms = {"defaults": {"model": str(place.models / SMALL), "max_model_len": MAX_MODEL_LEN}}
    raw = {"skip_tokenizer_init": False, "disable_log_stats": False}
    arms["PSI's settings"] = arguments_of(place, SMALL, raw, max_num_seqs=_SMALL_BATCH)
    for name, arguments in arms.items():
        batch = _SMALL_BATCH if "max_num_seqs" in arguments else 144
        run = asyncio.run(_async_run(arguments, batch, make_load(round(1.5 * batch) if batch > 144 else 600)))
        yield place.line(SMALL, f"AsyncLLM, text, cumulative, statistics, {name}", run)


async def _async_run(arguments: dict[str, Any], in_flight: int, load: Load) -> Run:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    meter = Meter(engine.engine_core)
    try:
        await drive_async(engine, meter, make_load(in_flight), in_flight)
        await engine.reset_prefix_cache()
        return await drive_async(engine, meter, load, in_flight)
    finally:
        engine.shutdown()


def replicas(place: Place) -> Lines:
    """Two engines on one GPU, side by side without MPS; `outputs` has one alone."""
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(2), context.SimpleQueue()
    both = [context.Process(target=_replica, args=(place, ready, results)) for _ in range(2)]
    for process in both:
        process.start()
    runs: list[Run] = [results.get() for _ in both]
    for process in both:
        process.join()
    for run in runs:
        yield place.line(SMALL, "one of two engines on the GPU", run)
    total = sum(run.tokens_per_second for run in runs)
    yield {"model": SMALL, "arm": "two engines on the GPU", "tokens_per_second": round(total)}


def _replica(place: Place, ready: Any, results: Any) -> None:
    batch = _SMALL_BATCH // 2
    kv_cache = 24 * 2**30
    arguments = arguments_of(
        place, SMALL, max_num_seqs=batch, gpu_memory_utilization=SHARE / 2, kv_cache_bytes=kv_cache
    )
    with served(arguments) as one:
        one.run(batch, waves=1.1)
        ready.wait(120)
        results.put(one.run(batch, waves=4))


def peaks(_place: Place) -> Lines:
    """What the device really does: a copy that is larger than any cache, and a large product of matrices."""
    import torch

    source = torch.empty(4 * 2**30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copy = _mean_seconds(lambda: target.copy_(source))
    size = 8192
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product = _mean_seconds(lambda: a @ b)
    flops, bandwidth = 2 * size**3 / product, 2 * source.numel() / copy
    yield {"arm": "copy and 8192^3 bf16 product", "flops": flops, "bytes_per_second": bandwidth}


def _mean_seconds(action: Any, warm_ups: int = 3, repeats: int = 15) -> float:
    import torch

    for _ in range(warm_ups):
        action()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        action()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / repeats
