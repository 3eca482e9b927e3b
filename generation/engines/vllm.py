"""The vLLM engine: the sync `LLMEngine`, the same code on GPU and CPU. The only file that imports vllm.

Token ids go in and come out (`FINAL_ONLY`, `detokenize=False`): the shared prefix is encoded once and finished ids are decoded in bulk.
"""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from generation.engines.base import Completion, EngineStats, Finished, FinishReason, Prepared, Request, Sampling
from generation.engines.config import VllmEngine
from generation.engines.prompts import PromptEncoder
from generation.engines.tally import Tally
from generation.errors import EngineDeadError, EngineError, RequestError

_CPU_BLOCK_SIZE = 32
"""vLLM's own default on CPU is 128, which wastes up to 127 tokens of a shared prefix; its kernels want multiples of 32."""

_MEMORY_SIGNS = (
    "out of memory",
    "no available memory",
    "available kv cache memory",
    "free memory",
    "available memory",
    "not enough memory",
    "kv cache is needed",
)


class VllmModel:
    """An `Engine` around one vLLM engine."""

    def __init__(self, config: VllmEngine) -> None:
        self.max_in_flight = config.max_num_seqs
        self._config = config
        self._tally = Tally()
        self._unfinished: dict[int, Prepared] = {}
        self._parameters: dict[Sampling, Any] = {}
        self._engine: Any = None
        self._encoder: PromptEncoder | None = None
        self._stop_ids: frozenset[int] = frozenset()

    def start(self) -> None:
        """Load tokenizer and model.

        Raises:
            EngineError: They cannot be loaded; the message names the model, why, and which setting to lower.
        """
        config = self._config
        if Path(config.model).is_absolute() and not (Path(config.model) / "config.json").is_file():
            raise EngineError(f"model {config.model}: there is no config.json; name a model folder or a hub id")
        try:
            self._load_tokenizer()
            self._engine = _start_engine(config)
        except Exception as error:
            raise EngineError(_load_message(config, error)) from error

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
        prompt = {"type": "token", "prompt_token_ids": prepared.payload}
        try:
            self._engine.add_request(str(request_id), prompt, self._sampling(prepared.request.sampling))
        except ValueError as error:
            raise RequestError(f"vLLM refused the request: {error}") from error
        except Exception as error:
            raise EngineDeadError(f"model {self._config.model}: {type(error).__name__}: {error}") from error
        self._unfinished[request_id] = prepared

    def step(self) -> list[Finished]:
        """One engine step.

        Raises:
            EngineDeadError: The engine cannot go on.
        """
        try:
            outputs = self._engine.step()
        except Exception as error:
            raise EngineDeadError(f"model {self._config.model}: {type(error).__name__}: {error}") from error
        finished = [self._finish(output) for output in outputs if output.finished]
        self._tally.stepped(len(self._unfinished))
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
        self._engine.abort_request([str(request_id) for request_id in request_ids])
        for request_id in request_ids:
            self._unfinished.pop(request_id, None)

    def stats(self) -> EngineStats:
        """Counters so far."""
        return self._tally.stats()

    def close(self) -> None:
        """Shut the engine core down and free its memory."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.engine_core.shutdown()

    def _finish(self, output: Any) -> Finished:
        request_id = int(output.request_id)
        prepared = self._unfinished.pop(request_id)
        ids = list(output.outputs[0].token_ids)
        reason = output.outputs[0].finish_reason
        finish: FinishReason = reason if reason in ("stop", "length") else "error"
        cached = output.num_cached_tokens or 0
        self._tally.finished(prepared, prepared.prompt_tokens, cached, len(ids))
        shown = ids[:-1] if ids and ids[-1] in self._stop_ids else ids
        error = f"vLLM ended the request with '{reason}'" if finish == "error" else ""
        return Finished(request_id, (shown, finish, prepared.prompt_tokens, cached, len(ids), error))

    def _sampling(self, sampling: Sampling) -> Any:
        if sampling not in self._parameters:
            from vllm.sampling_params import RequestOutputKind, SamplingParams

            self._parameters[sampling] = SamplingParams(
                max_tokens=sampling.max_output_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                stop_token_ids=sorted(self._stop_ids),
                output_kind=RequestOutputKind.FINAL_ONLY,
                detokenize=False,
            )
        return self._parameters[sampling]

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


def _start_engine(config: VllmEngine) -> Any:
    os.environ["VLLM_NO_USAGE_STATS"] = os.environ["DO_NOT_TRACK"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if config.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(config.threads)  # read once, when torch loads its OpenMP
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    on_cpu = current_platform.is_cpu()
    if on_cpu and config.threads is not None:
        torch.set_num_threads(config.threads)
    multiprocess = not on_cpu if config.multiprocess is None else config.multiprocess
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if multiprocess else "0"
    arguments = EngineArgs(**engine_arguments(config, on_cpu=on_cpu))
    return LLMEngine.from_engine_args(arguments, UsageContext.LLM_CLASS, enable_multiprocessing=multiprocess)


def engine_arguments(config: VllmEngine, *, on_cpu: bool) -> dict[str, Any]:
    """All settings of vLLM's `EngineArgs` that matter, explicit: its own defaults depend on who asks and are small for some."""
    return {
        "model": config.model,
        "revision": config.revision,
        "tokenizer_revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        "load_format": "safetensors",  # never pickles, which a model from elsewhere may hold
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": max(config.max_num_batched_tokens, config.max_num_seqs),
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
        "block_size": config.block_size or (_CPU_BLOCK_SIZE if on_cpu else None),
        "kv_cache_memory_bytes": config.kv_cache_bytes,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enforce_eager": config.enforce_eager,
        "tensor_parallel_size": config.tensor_parallel,
        "distributed_executor_backend": "uni" if config.tensor_parallel == 1 else "mp",
        # Fresh for every engine: two replicas with one seed would write the same texts for the same prompts.
        "seed": secrets.randbelow(2**31),
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }


def _load_message(config: VllmEngine, error: Exception) -> str:
    cause = f"{type(error).__name__}: {error}"
    message = f"model {config.model} cannot be loaded: {cause}"
    if not any(sign in cause.lower() for sign in _MEMORY_SIGNS):
        return message
    if config.kv_cache_bytes is not None:
        return f"{message}\nLower kv_cache_bytes ({config.kv_cache_bytes}), max_num_seqs or gpu_memory_utilization"
    return (
        f"{message}\nLower gpu_memory_utilization ({config.gpu_memory_utilization}), max_num_seqs or max_model_len, "
        "or set kv_cache_bytes"
    )
