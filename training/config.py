"""The part of a recipe that training owns. Data only: no torch, no deepspeed."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Count = Annotated[int, Field(ge=1)]

OWNED_DEEPSPEED_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "bf16",
    "fp16",
    "managed_gradient_accumulation",
    "zero_optimization.stage",
    "zero_optimization.overlap_comm",
)


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
            "threads",
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
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    gradient_checkpointing: bool = False
    loss_chunk_tokens: Count = 1024
    """Supervised tokens whose logits exist at once: with a vocabulary of 152,000 and 10 bytes each in bfloat16, 1,024 take 1.6 GB."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    zero_stage: Literal[0, 1, 2, 3] = 1
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """DeepSpeed JSON of your own, merged in; keys that the other fields own are refused."""
    seed_repeats: Annotated[int, Field(ge=0)] = 4
    """How often each human example (of the `mine` and `demo` splits) is in the training set."""
    held_out_rows: Annotated[int, Field(ge=0)] = 0
    """Synthetic rows that are measured on and not trained on, beside the human examples of the `validate` split."""
    checkpoint_every_steps: Count = 100
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
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        zero: Any = value.get("zero_optimization", {})
        given = {*value, *(f"zero_optimization.{key}" for key in zero)}
        owned = sorted(given & set(OWNED_DEEPSPEED_KEYS))
        if owned:
            raise ValueError(f"{', '.join(owned)}: set by the other fields of [training]; remove them here")
        return value

    @model_validator(mode="after")
    def _sound_update(self) -> "TrainingConfig":
        # With equal gradients DeepSpeed 0.19.8 updates bfloat16 weights differently without ZeRO: loss 5.01 after the first step, not 4.89.
        if self.zero_stage == 0 and self.precision == "bfloat16":
            raise ValueError(
                "zero_stage = 0 needs precision = float32; use zero_stage = 1, which is the same for one rank"
            )
        return self
