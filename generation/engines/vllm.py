"""The vLLM engine: the sync `LLMEngine`, the same code on GPU and CPU. Only this file and `vllm_scheduler` import vllm.

Token ids go in and come out: the shared prefix is encoded once and finished ids are decoded in bulk.
"""

import gc
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from generation.engines.base import (
    CanaryCounts,
    Completion,
    EngineStats,
    Finished,
    FinishReason,
    Prepared,
    Request,
    Sampling,
)
from generation.engines.config import VllmEngine
from generation.engines.presets import EngineSettings, settings_here
from generation.engines.prompts import PromptEncoder
from generation.engines.tally import Tally
from generation.engines.vllm_arguments import LEAN_SCHEDULER, LEAN_VERSION, engine_arguments, set_environment
from generation.engines.vllm_core import Ended, EngineCore
from generation.engines.vllm_errors import death, error_log, load_failure
from generation.errors import EngineDeadError, EngineError, RequestError

_GC_OBJECTS = 50_000
"""Flows and requests under way are many objects and few cycles: looking for these every 700 objects takes a tenth of the time of both."""


class VllmModel:
    """An `Engine` around one vLLM engine.

    Args:
        config: Its section of the recipe.
        replicas_per_gpu: Engines that share its GPU.
        rung: How often an engine like it ran out of memory (`generation.engines.presets`).
        canary: Whether vLLM keeps its own statistics, which cost time in each step.

    Attributes:
        engine: vLLM's `LLMEngine`, once started.
    """

    def __init__(self, config: VllmEngine, replicas_per_gpu: int = 1, rung: int = 0, canary: bool = False) -> None:
        self._settings = settings_here(config, replicas_per_gpu, rung)
        self.max_in_flight = self._settings.max_num_seqs
        self._rung = rung
        self._canary = canary
        self._counts = CanaryCounts()
        self._log_start = error_log().end()
        self._config = config
        self._tally = Tally()
        self._unfinished: dict[int, Prepared] = {}
        self.engine: Any = None
        self._core: EngineCore | None = None
        self._encoder: PromptEncoder | None = None
        self._stop_ids: frozenset[int] = frozenset()

    def start(self) -> None:
        """Load tokenizer and model.

        Raises:
            EngineError: They cannot be loaded; the message names the model and why.
            EngineMemoryError: There is too little memory for them.
        """
        config = self._config
        if Path(config.model).is_absolute() and not (Path(config.model) / "config.json").is_file():
            raise EngineError(f"model {config.model}: there is no config.json; name a model folder or a hub id")
        try:
            self._load_tokenizer()
            self.engine = _start_engine(config, self._settings, canary=self._canary)
            self._core = EngineCore(self.engine, self._sampling)
        except Exception as error:
            logged = error_log().root_cause(self._log_start)
            raise load_failure(config, self._settings, error, logged, self._rung) from error
        gc.collect()
        gc.freeze()  # what was loaded stays: collections during generation need not look at it
        gc.set_threshold(_GC_OBJECTS)

    def prepare(self, request: Request) -> Prepared:
        """Encode the chat prompt of one request.

        Raises:
            RequestError: It is empty, or prompt and completion may not fit the context. Nothing is ever truncated.
        """
        if not request.prefix and not request.text:
            raise RequestError("the prompt is empty")
        ids = self._prompts().encode(request.prefix, request.text)
        wanted, longest = request.sampling.max_output_tokens, self._config.max_model_len
        if len(ids) + wanted > longest:
            raise RequestError(
                f"prompt of {len(ids)} tokens and max_output_tokens {wanted} exceed max_model_len {longest}; "
                "raise max_model_len or shorten one of them"
            )
        return Prepared(request, len(ids), ids)

    def add(self, request_id: int, prepared: Prepared) -> None:
        """Queue a request.

        Raises:
            RequestError: vLLM refuses it.
            EngineDeadError: The engine core is gone.
        """
        try:
            self._running().add(request_id, prepared.payload, prepared.request.sampling)
        except ValueError as error:
            raise RequestError(f"vLLM refused the request: {error}") from error
        except Exception as error:
            raise self._death(error) from error
        self._unfinished[request_id] = prepared

    def step(self) -> list[Finished]:
        """One engine step.

        Raises:
            EngineDeadError: The engine cannot go on.
        """
        try:
            core = self._running()
            ended = core.step()
        except Exception as error:
            raise self._death(error) from error
        finished = [self._finish(one) for one in ended]
        self._tally.stepped(len(self._unfinished))
        self._counts = core.canary
        return finished

    def decode(self, finished: Sequence[Finished]) -> list[Completion]:
        """Finished token ids as completions."""
        texts = self._prompts().decode([one.payload[0] for one in finished])
        return [
            Completion(text, finish, prompt_tokens, cached_tokens, output_tokens, error)
            for text, (_, finish, prompt_tokens, cached_tokens, output_tokens, error) in zip(
                texts, (one.payload for one in finished), strict=True
            )
        ]

    def abort(self, request_ids: Sequence[int]) -> None:
        """Forget requests."""
        self._running().abort(request_ids)
        for request_id in request_ids:
            self._unfinished.pop(request_id, None)

    def stats(self) -> EngineStats:
        """Counters so far."""
        return replace(self._tally.stats(), canary=self._counts)

    def close(self) -> None:
        """Shut the engine core down and free its memory."""
        engine, self.engine, self._core = self.engine, None, None
        if engine is not None:
            engine.engine_core.shutdown()

    def _death(self, error: Exception) -> EngineDeadError:
        return death(self._config, error, error_log().root_cause(self._log_start))

    def _finish(self, ended: Ended) -> Finished:
        prepared = self._unfinished.pop(ended.request_id)
        ids, reason, cached = ended.ids, ended.reason, ended.cached_tokens
        finish: FinishReason = reason if reason in ("stop", "length") else "error"
        self._tally.finished(prepared, prepared.prompt_tokens, cached, len(ids))
        shown = ids[:-1] if ids and ids[-1] in self._stop_ids else ids
        error = f"vLLM ended the request with '{reason}'" if finish == "error" else ""
        return Finished(ended.request_id, (shown, finish, prepared.prompt_tokens, cached, len(ids), error))

    def _sampling(self, sampling: Sampling) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        return SamplingParams(
            max_tokens=sampling.max_output_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop_token_ids=sorted(self._stop_ids),
            output_kind=RequestOutputKind.FINAL_ONLY,
            detokenize=False,
        )

    def _running(self) -> EngineCore:
        if self._core is None:
            raise EngineDeadError(f"model {self._config.model}: the engine is not started")
        return self._core

    def _load_tokenizer(self) -> None:
        import transformers

        library: Any = transformers  # its loaders have no usable types
        model, revision = self._config.model, self._config.revision or "main"
        remote_code = self._config.trust_remote_code
        tokenizer = library.AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=remote_code)
        try:
            generation = library.GenerationConfig.from_pretrained(model, revision=revision)
        except OSError:
            generation = None
        self._stop_ids = _stop_ids(tokenizer, generation)
        self._encoder = PromptEncoder(tokenizer)

    def _prompts(self) -> PromptEncoder:
        if self._encoder is None:
            raise EngineDeadError(f"model {self._config.model}: the engine is not started")
        return self._encoder


def _stop_ids(tokenizer: Any, generation: Any) -> frozenset[int]:
    declared = None if generation is None else generation.eos_token_id
    ids = cast("list[int | None]", [declared] if declared is None or isinstance(declared, int) else list(declared))
    return frozenset(one for one in (*ids, tokenizer.eos_token_id) if one is not None)


def _start_engine(config: VllmEngine, settings: EngineSettings, *, canary: bool) -> Any:
    set_environment(config)
    import torch
    from vllm import __version__ as vllm_version
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    on_cpu = current_platform.is_cpu()
    if on_cpu and config.threads is not None:
        torch.set_num_threads(config.threads)
    multiprocess = not on_cpu if config.multiprocess is None else config.multiprocess
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if multiprocess else "0"
    scheduler = LEAN_SCHEDULER if vllm_version.startswith(LEAN_VERSION) else None
    arguments = EngineArgs(**engine_arguments(config, settings, on_cpu=on_cpu, canary=canary), scheduler_cls=scheduler)
    return LLMEngine.from_engine_args(arguments, UsageContext.LLM_CLASS, enable_multiprocessing=multiprocess)
