"""The generation stage with the 30M-parameter Llama: 64 bundles, an open answer to each draft, prompts of 272 tokens, drawn lengths."""

import itertools
from dataclasses import replace
from pathlib import Path

from benchmarks.support.llama30m import GROUPS, MAX_OUTPUT_TOKENS, PROMPT_TOKENS, Words, make_model, output_lengths
from benchmarks.support.stage import Kind, Stage
from generation.config import AnswerConfig, CurationConfig, GenerationConfig, SamplingConfig, TaskConfig
from generation.curation.decontaminate import EvaluationIndex
from generation.engines.base import Prepared
from generation.engines.config import VllmEngine
from generation.instances.flow import InstanceContext
from generation.instances.plan import Bundle, Cell
from generation.instances.screen import make_screen
from generation.prompts.prompt_set import load_prompt_set
from generation.task import Task

_PATTERNS = r"""
input = '\A\s*(?P<input>\S.{0,199})'
answer = '(?P<answer>\S+)\s*\Z'
"""
_DRAWN = 100_000


def llama30m_engine(folder: Path) -> VllmEngine:
    """Write the model into a folder; the section of a recipe that serves it on one core."""
    make_model(folder)
    settings = {"max_num_seqs": 128, "max_num_batched_tokens": 2048, "kv_cache_bytes": 2**30, "block_size": 32}
    on_cpu = {"gpu_memory_utilization": 0.2, "enforce_eager": True, "threads": 1}
    return VllmEngine.model_validate({"model": str(folder), "max_model_len": 1024, **settings, **on_cpu})


def llama30m_stage(folder: Path, flows_per_unit: int) -> Stage:
    """Units of 64 bundles, for a model folder. Drafts are random words, and all that are not empty are answered once."""
    words = Words.of(folder)
    prompts = folder / "prompts"
    prompts.mkdir(exist_ok=True)
    # An input may be one word: the filler makes it long enough to be cut.
    (prompts / "answer_text.jinja").write_text(f" {{{{ input }}}}{words.suffix(0)}", encoding="utf-8")
    (prompts / "patterns.toml").write_text(_PATTERNS, encoding="utf-8")
    task = Task(TaskConfig(name="words", description="words", answer=AnswerConfig(kind="open"), seeds="none"), ())
    bundles = [Bundle(f"bundle-{i}", ("p",), words.prefix(i), words.prefix(i)) for i in range(GROUPS)]
    sampling = SamplingConfig(max_output_tokens=MAX_OUTPUT_TOKENS)
    generation = GenerationConfig(accepted_rows=1, draft=sampling, answer=sampling)
    curation = CurationConfig()
    screen = make_screen(
        task, bundles, EvaluationIndex([], curation.decontaminate_ngram), curation, generation.demo_leak
    )
    prompt_set = load_prompt_set(str(prompts), Path())
    context = InstanceContext("benchmark", {"words": task}, prompt_set, generation, "model", {"words": screen})
    kinds = [Kind("words", bundle, (Cell(f"cell-{i}", words.suffix(i)),)) for i, bundle in enumerate(bundles)]
    return Stage(context, kinds, flows_per_unit)


class DrawnLengths:
    """Gives each request in turn the next drawn length, and cuts its prompt: what `Recorder` takes as `shape`."""

    def __init__(self) -> None:
        self._lengths = itertools.cycle(output_lengths(_DRAWN))

    def __call__(self, prepared: Prepared) -> Prepared:
        """The request as it is made."""
        sampling = replace(prepared.request.sampling, max_output_tokens=next(self._lengths))
        return Prepared(replace(prepared.request, sampling=sampling), PROMPT_TOKENS, prepared.payload[:PROMPT_TOKENS])
