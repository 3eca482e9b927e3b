"""vLLM's scheduler with short loops over tokens, for requests as PSI makes them. vLLM's engine core imports this, in its process.

For each token of each sequence vLLM asks for speculation, encoders, connectors, grammars, pooling and log probabilities, which no request
of ours has. `LeanLoops` asks once, when the engine starts and when a request is added. What is scheduled, cached and put out stays the
same, step by step, and whatever is out of the ordinary goes through vLLM's own code. `benchmarks/scheduler.py` measures the difference.
"""

from collections import defaultdict
from typing import Any

_UNUSED_IN_SCHEDULER = (
    "connector", "ec_connector", "aux_output_connector", "lora_config", "num_spec_tokens", "num_lookahead_tokens",
    "num_prefill_lookahead", "prefix_replay_group_ids", "need_mamba_block_aligned_split", "is_encoder_decoder",
    "is_mm_encoder_only", "max_num_encoder_input_tokens", "use_pp", "defer_block_free", "return_sampling_mask", "log_stats",
    "enable_kv_cache_events",
)  # fmt: skip
_UNUSED_IN_REQUEST = (
    "pooling_params", "structured_output_request", "lora_request", "mm_features", "prompt_embeds", "resumable", "trace_headers",
    "spec_decode_metrics",
)  # fmt: skip
_UNUSED_IN_SAMPLING = ("min_tokens", "repetition_detection", "logprobs", "prompt_logprobs", "extra_args")
_UNUSED_IN_OUTPUT = (
    "logprobs", "prompt_logprobs_dict", "prompt_token_id_logprobs_dict", "pooler_output", "kv_connector_output",
    "ec_connector_output", "num_nans_in_logits", "aux_output_connector_output", "sampling_masks",
)  # fmt: skip
_MISSING = object()
_CAN_BE_EMPTY = (bool, int, str, list, tuple, dict)
"""Of others, such as tensors, none may be there at all."""


def lean_scheduler(vllm_config: Any, **settings: Any) -> Any:
    """A scheduler: what vLLM calls in place of a class.

    Args:
        vllm_config: vLLM's `VllmConfig`.
        settings: What else its schedulers take.
    """
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    kind: Any = AsyncScheduler if vllm_config.scheduler_config.async_scheduling else Scheduler
    scheduler = kind(vllm_config=vllm_config, **settings)
    if can_be_lean(scheduler):
        LeanLoops(scheduler)
    return scheduler


def can_be_lean(scheduler: Any) -> bool:
    """Whether an engine has nothing that the short loops leave out: one group of full attention, whose blocks are hashed whole."""
    from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

    managers = scheduler.kv_cache_manager.coordinator.single_type_managers
    return (
        _lacks(scheduler, _UNUSED_IN_SCHEDULER)
        and len(managers) == 1
        and type(managers[0]) is FullAttentionManager
        and managers[0].block_size == scheduler.hash_block_size
        and scheduler.num_sampled_tokens_per_step == 1
        and scheduler.finished_req_ids_dict is None  # empty where it is kept
    )


def _is_ordinary(request: Any) -> bool:
    """Whether a request has nothing that the short loops leave out."""
    return _lacks(request, _UNUSED_IN_REQUEST) and _lacks(request.sampling_params, _UNUSED_IN_SAMPLING)


def _lacks(owner: Any, names: tuple[str, ...]) -> bool:
    """Whether each attribute is there, and unset: None, False, 0 or empty."""
    values = (getattr(owner, name, _MISSING) for name in names)
    return all(one is None or (isinstance(one, _CAN_BE_EMPTY) and not one) for one in values)


class LeanLoops:
    """Takes the place of a scheduler's loops over tokens.

    Args:
        scheduler: One that `can_be_lean`, with no requests yet.
    """

    def __init__(self, scheduler: Any) -> None:
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.core.sched.output import CachedRequestData
        from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
        from vllm.v1.request import RequestStatus

        self._scheduler = scheduler
        self._async = isinstance(scheduler, AsyncScheduler)
        self._cached_data, self._output, self._outputs = CachedRequestData, EngineCoreOutput, EngineCoreOutputs
        self._running, self._stopped = RequestStatus.RUNNING, RequestStatus.FINISHED_STOPPED
        self._length_capped = RequestStatus.FINISHED_LENGTH_CAPPED
        self._cache = scheduler.kv_cache_manager
        self._blocks = self._cache.coordinator.single_type_managers[0]
        self._block_size: int = self._blocks.block_size
        self._nothing_new = self._cache.empty_kv_cache_blocks
        self._all_ordinary = True
        self._preempted: list[Any] = []
        self._stock_add, scheduler.add_request = scheduler.add_request, self._add_request
        self._stock_preempt, scheduler._preempt_request = scheduler._preempt_request, self._preempt
        self._stock_allocate, self._cache.allocate_slots = self._cache.allocate_slots, self._allocate_slots
        self._stock_data, scheduler._make_cached_request_data = scheduler._make_cached_request_data, self._data
        self._stock_after, scheduler._update_after_schedule = scheduler._update_after_schedule, self._after_schedule
        self._stock_update, scheduler.update_from_output = scheduler.update_from_output, self._update_from_output

    def _add_request(self, request: Any) -> None:
        self._all_ordinary = self._all_ordinary and _is_ordinary(request)
        self._stock_add(request)

    def _preempt(self, request: Any, *arguments: Any, **settings: Any) -> None:
        self._stock_preempt(request, *arguments, **settings)
        self._preempted.append(request)  # what the device still computes for it is stale

    def _allocate_slots(self, request: Any, num_new_tokens: int, *arguments: Any, **settings: Any) -> Any:
        """A token with room in its last block, while no full block waits to be cached, changes nothing."""
        computed = request.num_computed_tokens + 1
        if num_new_tokens == 1 and request.status is self._running and computed % self._block_size > 1:
            name = request.request_id
            to_cache = min(computed, len(request._all_token_ids)) // self._block_size
            if self._blocks.num_cached_block.get(name, 0) >= to_cache:
                return self._nothing_new
        return self._stock_allocate(request, num_new_tokens, *arguments, **settings)

    def _data(
        self, running: list[Any], resumed: list[Any], tokens: dict[str, int], drafts: Any, new_blocks: dict[str, Any]
    ) -> Any:
        if not self._all_ordinary:
            return self._stock_data(running, resumed, tokens, drafts, new_blocks)
        scheduler, nothing = self._scheduler, self._nothing_new
        requests = [*running, *resumed]
        names = [request.request_id for request in requests]
        unknown: list[Any] = []
        if not scheduler.use_v2_model_runner:
            before = scheduler.prev_step_scheduled_req_ids
            unknown = [request for request in requests if request.request_id not in before]
        blocks = [new_blocks[name] for name in names]
        return self._cached_data(
            req_ids=names,
            resumed_req_ids={request.request_id for request in resumed},
            new_token_ids=[],
            all_token_ids={request.request_id: request.all_token_ids.copy() for request in unknown},
            new_block_ids=[None if one is nothing else one.get_block_ids(allow_none=True) for one in blocks],
            num_computed_tokens=[request.num_computed_tokens for request in requests],
            num_output_tokens=[len(one._output_token_ids) + one.num_output_placeholders for one in requests],
        )

    def _after_schedule(self, scheduled: Any) -> None:
        if not self._all_ordinary:
            self._stock_after(scheduled)
            return
        scheduler, prefills = self._scheduler, self._scheduler._inflight_prefills
        requests, ahead = scheduler.requests, self._async
        eligible = scheduler.current_step + scheduler.decode_stagger if ahead and scheduler.use_v2_model_runner else 0
        for name, count in scheduled.num_scheduled_tokens.items():
            request = requests[name]
            computed = request.num_computed_tokens = request.num_computed_tokens + count
            request.num_in_flight_tokens += count
            partial = computed < len(request._all_token_ids) + request.num_output_placeholders
            request.is_prefill_chunk = partial
            if partial:
                continue
            if prefills:
                prefills.discard(request)
            if ahead:
                request.num_output_placeholders += 1
                request.spec_token_ids = []
                if eligible:
                    request.next_decode_eligible_step = eligible
        scheduler.finished_req_ids, scheduler.reset_preempted_req_ids = set(), set()

    def _update_from_output(self, scheduled: Any, output: Any) -> Any:
        if not self._is_ordinary_step(scheduled, output):
            return self._stock_update(scheduled, output)
        scheduler = self._scheduler
        requests, tokens, index = scheduler.requests, output.sampled_token_ids, output.req_id_to_index
        outputs: defaultdict[int, list[Any]] = defaultdict(list)
        ended: set[Any] = set()
        for name, count in scheduled.num_scheduled_tokens.items():
            request = requests.get(name)
            if request is None:  # aborted while it was computed
                continue
            request.num_in_flight_tokens -= count
            new = tokens[index[name]]
            if not new:  # a part of its prompt
                continue
            self._append(request, new[0])
            stats = request.prefill_stats
            if stats is not None:
                request.prefill_stats = None
                stats.finalize(self._cache.estimate_cached_tokens(request))
            reason = None
            if request.status is not self._running:
                reason = request.get_finished_reason()
                scheduler._free_request(request)
                ended.add(request)
            one = self._output(name, new, finish_reason=reason, stop_reason=request.stop_reason, prefill_stats=stats)
            outputs[request.client_index].append(one)
        if ended:
            scheduler.running = [request for request in scheduler.running if request not in ended]
        return {client: self._outputs(outputs=ones) for client, ones in outputs.items()}

    def _is_ordinary_step(self, scheduled: Any, output: Any) -> bool:
        self._preempted = [request for request in self._preempted if request.num_stale_output_tokens > 0]
        scheduler = self._scheduler
        return (
            self._all_ordinary
            and not self._preempted
            and not scheduled.scheduled_spec_decode_tokens
            and not scheduler.grammar_compile_error_reqs
            and not scheduler.encoder_cache_mismatch_reqs
            and _lacks(output, _UNUSED_IN_OUTPUT)
            and bool(output.sampled_token_ids)
        )

    def _append(self, request: Any, token: int) -> None:
        """Book a sampled token, and whether its request ends with it."""
        known, written, sampling = request._all_token_ids, request._output_token_ids, request.sampling_params
        known.append(token)
        written.append(token)
        if len(known) % self._block_size == 0:
            request.update_block_hashes()
        if token == sampling.eos_token_id:
            request.status = self._stopped
        elif sampling.stop_token_ids and token in sampling.stop_token_ids:
            request.status, request.stop_reason = self._stopped, token
        elif len(known) >= self._scheduler.max_model_len or len(written) >= request.max_tokens:
            request.status = self._length_capped
        if self._async:
            request.num_output_placeholders -= 1
            computed = request.num_computed_tokens - request.num_output_placeholders
            if computed % self._block_size == 0:
                self._cache.cache_blocks(request, computed)
