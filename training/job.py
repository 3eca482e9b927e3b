"""What one training job is: everything that a rank needs to know, as one small JSON."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from generation.storage import Store
from training.config import TrainingConfig

LINEAGE = "psi.json"
"""In a published model's folder: where the model comes from. It is written last, so a folder that has it is whole."""

UNCHECKED = "psi.unchecked.json"
"""Its name before whoever started the job has seen the model answer in an engine, and gives it the name `LINEAGE`."""


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A model, the data to train it on and where the result goes.

    Attributes:
        model: Local Hugging Face folder of the model to start from.
        dataset: URI of a sealed dataset folder (`<run>/dataset/round-0`).
        human: URI of a parquet file of human examples with the same `messages` column, or None.
        held_out: The same of human examples that the model is measured on and never trained on, or None.
        output: The model folder to publish; it appears complete or not at all.
        tokens: Folder of token files, which jobs may share: their names follow from what they hold.
        checkpoints: Folder for DeepSpeed state; every rank must see the same one.
        metrics: JSONL file, one line an optimizer step, written by rank 0; TensorBoard's files go into `tensorboard/` beside it.
        config: The `[training]` section of the recipe.
        seed: Decides order and packing, together with the epoch.
        name: Names the job in logs and in the model's lineage.
        checkpoint_copies: Folder in a bucket where complete checkpoints are copied, for a disk that goes with its node; None: nowhere.
        checked_later: Whether who started the job checks the model in an engine, and publishes it then.
    """

    model: str
    dataset: str
    human: str | None
    held_out: str | None
    output: str
    tokens: str
    checkpoints: str
    metrics: str
    config: TrainingConfig
    seed: int
    name: str
    checkpoint_copies: str | None = None
    checked_later: bool = False

    @property
    def is_exported(self) -> bool:
        """Whether the model is there and whole, published or about to be."""
        return any(Store(self.output).exists(name) for name in (LINEAGE, UNCHECKED))

    def to_json(self) -> str:
        """The job as JSON."""
        values: dict[str, Any] = {**asdict(self), "config": self.config.model_dump()}
        return json.dumps(values, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "TrainingJob":
        """The inverse of `to_json`."""
        values: dict[str, Any] = json.loads(text)
        config = TrainingConfig.model_validate(values.pop("config"))
        return cls(config=config, **values)
