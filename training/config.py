"""The part of a recipe that training owns. Data only: no torch, no deepspeed."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Count = Annotated[int, Field(ge=1)]

REDUCE_BUCKET = 500_000_000
"""Numbers in the buffer for gradients on their way, where the user's `zero_optimization.reduce_bucket_size` does not say; a smaller
model has a smaller one."""
OWNED_DEEPSPEED_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "managed_gradient_accumulation",
    "gradient_clipping",
    "gradient_allreduce_op",
    "optimizer",
    "scheduler",
    "bf16",
    "bfloat16",
    "fp16",
    "amp",
    "torch_autocast",
    "zero_optimization.stage",
    "zero_optimization.overlap_comm",
    "checkpoint.load_universal",
)
PASSED_DEEPSPEED_KEYS = (
    "aio",
    "checkpoint",
    "comms_logger",
    "communication_data_type",
    "csv_monitor",
    "data_types",
    "disable_allgather",
    "dump_state",
    "flops_profiler",
    "gradient_predivide_factor",
    "log_level",
    "memory_breakdown",
    "prescale_gradients",
    "steps_per_print",
    "timers",
    "wall_clock_breakdown",
    "zero_force_ds_cpu_optimizer",
    "zero_optimization",
)
"""DeepSpeed looks at no key that it does not know, so a mistyped one would be lost in silence."""


class LoraConfig(BaseModel):
    """Low-rank adapters: the model's own weights stay as they are, and a product of two small matrices is added to them."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    rank: Count = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The product is scaled by `alpha / rank`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """On what goes into the adapters."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which layers get one, by the last part of their names (`q_proj`); `all-linear`: every linear layer but the output layer."""


class TrainingConfig(BaseModel):
    """How the small model is trained on the curated rows."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    operations: ClassVar[frozenset[str]] = frozenset(
        {
            "ranks",
            "cpus_per_rank",
            "gpus_per_rank",
            "checkpoint_every_steps",
            "max_restarts",
            "dataset_deadline_seconds",
            "evaluate_every_steps",
            "threads",
            "environment",
            "collective_timeout_seconds",
            "wandb_project",
            "wandb_url",
            "loss_chunk_tokens",
            "gradient_checkpointing",
        }
    )

    ranks: Count = 1
    """Training processes; one per GPU."""
    cpus_per_rank: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_rank: Annotated[float, Field(ge=0)] = 0.0
    threads: Count = 1
    """OpenMP threads of a rank."""
    max_tokens: Count = 4096
    """Length of a packed row, tokens."""
    overlong: Literal["drop", "truncate", "error"] = "drop"
    """What becomes of instances above `max_tokens`. A truncated one has no end token, so it does not teach the model to stop."""
    loss_on: Literal["last_assistant", "assistant", "all"] = "last_assistant"
    """The tokens that are supervised: the last answer of a conversation, all answers, or everything but the first token."""
    rows_per_step: Count = 8
    """Packed rows per optimizer step, over all ranks."""
    rows_per_micro_batch: Count = 1
    epochs: Annotated[float, Field(gt=0)] = 2.0
    max_steps: Count | None = None
    """Stop after so many optimizer steps, whatever `epochs` says."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """`wsd` (warm-up, stable, decay) stays at `learning_rate` until the last `decay_share` of the steps."""
    decay_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    gradient_checkpointing: bool = False
    loss_chunk_tokens: Count = 1024
    """Supervised tokens whose logits exist at once: with a vocabulary of 152,000 and 10 bytes each in bfloat16, 1,024 take 1.6 GB."""
    lora: LoraConfig | None = None
    """Train adapters only, and publish them merged into the model. Their learning rate is about ten times that of all weights."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    zero_stage: Literal[0, 1, 2, 3] = 1
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """DeepSpeed JSON of your own, merged in; keys that the other fields own are refused."""
    seed_repeats: Annotated[int, Field(ge=0)] = 4
    """How often each human example (of the `mine` and `demo` splits) is in the training set."""
    held_out_rows: Annotated[int, Field(ge=0)] = 0
    """Synthetic rows that are measured on and not trained on, beside the human examples of the `validate` split."""
    evaluate_every_steps: Count = 100
    """Steps between two looks at the loss on what is held out; there is one after the last step, too."""
    publish: Literal["last", "best"] = "last"
    """Which weights are published: those after the last step, or those of the checkpoint with the lowest loss on held-out human
    examples (on held-out synthetic rows where there are none). With "best" each checkpoint is evaluated."""
    checkpoint_every_steps: Count = 100
    environment: dict[Annotated[str, Field(pattern="^(NCCL|GLOO|TORCH_NCCL)_[A-Z0-9_]+$")], str] = Field(
        default_factory=dict[str, str]
    )
    """Environment variables of the ranks that say how they reach each other, such as `NCCL_SOCKET_IFNAME`."""
    collective_timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """How long a rank waits for the others before it gives up, and the gang starts again. A network that is back sooner goes unnoticed."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often a dead rank may restart the gang."""
    dataset_deadline_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """How long `psi train` waits for a dataset that is not sealed yet."""
    wandb_project: str | None = None
    """Send metrics, and nothing else, to this project of Weights & Biases. Needs `psi[wandb]`."""
    wandb_url: str = "https://api.wandb.ai"
    """Its server; a private task must have the host among its `allowed_endpoints`."""

    @field_validator("deepspeed")
    @classmethod
    def _passed_on(cls, value: dict[str, Any]) -> dict[str, Any]:
        owned = sorted(_paths(value) & set(OWNED_DEEPSPEED_KEYS))
        if owned:
            raise ValueError(f"{', '.join(owned)}: set by the other fields of [training]; remove them here")
        unknown = sorted(set(value) - set(PASSED_DEEPSPEED_KEYS))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not passed on; DeepSpeed gets {', '.join(PASSED_DEEPSPEED_KEYS)}")
        return value

    @model_validator(mode="after")
    def _sound_update(self) -> "TrainingConfig":
        # With equal gradients DeepSpeed 0.19.8 updates bfloat16 weights differently without ZeRO: loss 5.01 after the first step, not 4.89.
        if self.zero_stage == 0 and self.precision == "bfloat16":
            raise ValueError(
                "zero_stage = 0 needs precision = float32; use zero_stage = 1, which is the same for one rank"
            )
        if self.attention == "flash_attention_2" and (self.precision == "float32" or not self.gpus_per_rank):
            raise ValueError("attention = flash_attention_2 needs precision = bfloat16 and gpus_per_rank")
        # Of a frozen weight that is spread over the ranks, peft sees an empty tensor: adapters are saved and merged empty.
        if self.lora and self.zero_stage == 3:
            raise ValueError("lora needs zero_stage 1 or 2: its optimizer state is small, and stage 3 loses adapters")
        return self


def _paths(values: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted names of all keys, those of inner tables too."""
    found = {prefix + key for key in values}
    for key, value in values.items():
        found |= _paths(value, f"{prefix}{key}.") if isinstance(value, dict) else set()
    return found
