"""The parts of a recipe that say which engine serves a model, and how many of it there are. Data only: imports no engine."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from generation.config import Count, Section


class VllmEngine(Section):
    """vLLM in the replica's process, on GPU or CPU."""

    operations = frozenset(
        {
            "max_num_seqs", "max_num_batched_tokens", "kv_cache_bytes", "kv_cache_dtype", "gpu_memory_utilization", "block_size",
            "enforce_eager", "tensor_parallel", "pipeline_parallel", "threads", "multiprocess", "model", "copied_from",
        }
    )  # fmt: skip

    kind: Literal["vllm"] = "vllm"
    model: str
    """Local folder (relative to the recipe) or hub id. Identity is the digest of its weights, not its path."""
    copied_from: str = ""
    """URI of the bucket's folder that each node copies the model from, in place of what is in `model`: of a model that the run has trained."""
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_model_len: Count = 4096
    """Longest prompt plus completion, tokens."""
    max_num_seqs: Count | None = None
    """Sequences that run at once. Default: by model and device (`generation.engines.presets`), a multiple of 16."""
    max_num_batched_tokens: Count | None = None
    """Tokens computed in one step. Default: by model and device."""
    kv_cache_bytes: Count | None = None
    """Size of the KV cache. Default: what `gpu_memory_utilization` leaves; on CPU what `max_num_seqs` needs, up to a quarter of the
    machine's memory."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """Number format of the KV cache; fp8 holds twice as many sequences, and changes texts a little, as other hardware does."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of a GPU that each replica fills. Default: 0.92, divided among the replicas that share one."""
    block_size: Count | None = None
    """Tokens in a block of the KV cache. Default: 32."""
    enforce_eager: bool = False
    tensor_parallel: Count = 1
    """GPUs of one node that share each layer; together with `pipeline_parallel`, the pool's `gpus`."""
    pipeline_parallel: Count = 1
    """Groups of `tensor_parallel` GPUs that share the layers; more than one may lie on several nodes."""
    threads: Count | None = None
    """OpenMP threads of a CPU engine."""
    multiprocess: bool | None = None
    """Engine core in its own process (its own GIL). Default: yes on GPU, no on CPU."""
    trust_remote_code: bool = False

    @field_validator("copied_from")
    @classmethod
    def _refuse_in_recipes(cls, copied_from: str) -> str:
        if copied_from:
            raise ValueError("is not for recipes; copy the model to a local folder and name that in `model`")
        return copied_from


class HttpEngine(Section):
    """Any OpenAI-compatible endpoint. Off unless a recipe names one."""

    operations = frozenset(
        {"url", "api_key_env", "requests_per_minute", "max_in_flight", "timeout_seconds", "max_retries"}
    )

    kind: Literal["http"]
    url: str
    """Base URL, with `/v1`."""
    model: str
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself never enters a recipe."""
    requests_per_minute: Count | None = None
    max_in_flight: Count = 64
    timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    max_retries: Annotated[int, Field(ge=0)] = 6

    @field_validator("url")
    @classmethod
    def _no_secret(cls, value: str) -> str:
        # The run folder, error messages and the report show the URL.
        if "@" in urlsplit(value).netloc or urlsplit(value).query:
            raise ValueError(
                "holds a user, a password or a query, which may be secrets; name the key's variable in api_key_env"
            )
        return value


class ScriptedEngine(Section):
    """Deterministic answers by prompt hash, with planted faults. For fault tests and scheduling benchmarks only."""

    kind: Literal["scripted"]
    replies: tuple[str, ...] = ("ok",)
    """The completion of a prompt is one of these, chosen by its hash; `{random}` in it differs each time, as sampled text does."""
    seconds_per_step: Annotated[float, Field(ge=0)] = 0.0
    max_in_flight: Count = 64
    fail_prompts_with: str | None = None
    """Requests whose prompt contains this text end with finish `error`."""
    die_on_prompts_with: str | None = None
    """The engine dies in the step after it was given a prompt that contains this text."""
    die_after_requests: Count | None = None
    """The engine dies once it has finished so many."""
    out_of_memory: Literal["start", "work"] | None = None
    """When it runs out of memory: as it starts, or once it has finished a request. It does not from `fits_at_rung` on."""
    fits_at_rung: Annotated[int, Field(ge=0)] = 1


EngineConfig = Annotated[VllmEngine | HttpEngine | ScriptedEngine, Field(discriminator="kind")]


class PoolConfig(Section):
    """An engine and how many replicas of it there are."""

    operations = frozenset({"replicas", "cpus", "gpus", "start_timeout_seconds", "full_within_seconds"})

    engine: EngineConfig
    replicas: Count = 1
    cpus: Annotated[float, Field(ge=0)] = 1.0
    """Logical CPUs that Ray reserves for a replica."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs that Ray reserves for a replica; fractions share one."""
    start_timeout_seconds: Annotated[float, Field(gt=0)] = 900.0
    """So long no engine at all may be ready before the run ends, at its start as later. Includes the time that a cluster takes to bring
    a node."""
    full_within_seconds: Annotated[float, Field(gt=0)] = 600.0
    """So long fewer than `replicas` engines may be ready before that is said: in the progress line, the metrics, the record of the stage
    and the report. The work goes on with those that are there."""

    @property
    def replicas_per_gpu(self) -> int:
        """How many share one."""
        return replicas_per_gpu(self.gpus)


def replicas_per_gpu(gpus: float) -> int:
    """Replicas that share a GPU where each reserves so much of one."""
    return max(1, int(1 / gpus)) if gpus else 1
