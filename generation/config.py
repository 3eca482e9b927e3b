"""The parts of a recipe that generation owns. Data only: no engine, no model, no Ray.

A field is *identity* (it decides what the run is, is hashed, and cannot change on an existing run) unless its model names it in
`operations`.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, model_validator

from generation.arms import known_arm

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TargetPer = Literal["task", "cell", "difficulty", "context", "label"]
ArmName = Annotated[str, AfterValidator(known_arm)]

TASK_NAME = r"^[a-z0-9][a-z0-9_-]{0,40}$"


class Section(BaseModel):
    """A part of a recipe: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    operations: ClassVar[frozenset[str]] = frozenset()
    """Fields that may change on an existing run."""


class AnswerConfig(Section):
    """What an answer is, how it is found in a text and when two are equal."""

    kind: Literal["choice", "number", "exact", "regex", "open"]
    """choice: one of `labels`; number: compared as a decimal; exact: compared as text; regex: what `pattern` finds; open: free text."""
    labels: tuple[str, ...] = ()
    """The closed label space of a choice."""
    pattern: str | None = None
    """Regular expression whose first group (or whole match) is the answer; the last match counts. Default: by kind."""

    @model_validator(mode="after")
    def _complete(self) -> "AnswerConfig":
        if (self.kind == "choice") != bool(self.labels):
            raise ValueError("labels: needed by kind 'choice' and by no other kind")
        if self.kind == "regex" and self.pattern is None:
            raise ValueError("pattern: needed by kind 'regex'")
        return self


class FieldsConfig(Section):
    """Which columns of the user's files hold what."""

    input: str = "input"
    output: str = "output"
    rationale: str | None = None
    answer_pattern: str | None = None
    """Regular expression whose first group is the answer inside `output`, such as `####\\s*(.+)`; the text before the match is the
    rationale. Default: the whole column is the answer."""


class TaskConfig(Section):
    """What the model shall learn, and the human examples of it."""

    operations = frozenset({"allowed_endpoints"})

    name: Annotated[str, Field(pattern=TASK_NAME)]
    description: str
    """What the task is, in the words that the trained model will see. No example, no principle."""
    answer: AnswerConfig
    seeds: str
    """JSONL, CSV or Parquet file, or a `datasets` folder; relative to the recipe."""
    max_seeds: Count | None = None
    """Take the first so many rows of `seeds`."""
    evaluation: str | None = None
    """Held-out rows in the same form. Only evaluation and decontamination open it."""
    max_evaluation: Count | None = None
    fields: FieldsConfig = FieldsConfig()
    verifier: str | None = None
    """`file.py:function` beside the recipe, called with (input, answer) in a process of its own: whether the answer is right, or the
    right answer. Rows that it does not confirm are dropped. The Python files beside it are part of what the run is."""
    privacy: Literal["public", "private"] = "public"
    allowed_endpoints: tuple[str, ...] = ()
    """Hosts (`host` or `host:port`) that may see a private task."""


class SamplingConfig(Section):
    """How completions are drawn."""

    max_output_tokens: Count
    temperature: Temperature = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


class LevelConfig(Section):
    """One level of principles: what the large model is shown, and what it is asked."""

    prompt: str
    """Template of the prompt set."""
    evidence: Literal["diverse", "cluster", "pair", "errors"]
    """diverse: seeds spread over all clusters; cluster: seeds of one; pair: two of one cluster and one of another; errors: seeds that
    the small model answered wrongly, with its answer."""
    kind: Literal["generate", "solve", "check"] | None = None
    """Kind of principles that the level yields. Default: the large model says so itself."""
    calls: Count = 4
    seeds_per_call: Count = 8
    quota: Count = 3
    """At most so many are selected."""
    max_principles_per_call: Count = 8


def _default_levels() -> dict[str, LevelConfig]:
    return {
        "task": LevelConfig(prompt="mine_task", evidence="diverse", calls=1, seeds_per_call=16, quota=2),
        "skill": LevelConfig(prompt="mine_skill", evidence="cluster", calls=4, seeds_per_call=8),
        "instance": LevelConfig(prompt="mine_instance", evidence="pair", calls=4, seeds_per_call=3),
        "error": LevelConfig(prompt="mine_error", evidence="errors", calls=2, seeds_per_call=4, quota=2),
    }


class PrinciplesConfig(Section):
    """Mining, merging and selecting principles."""

    operations = frozenset({"large_token_budget"})

    from_file: str | None = Field(default=None, validation_alias=AliasChoices("from", "from_file"))
    """JSONL of `{"task", "level", "kind", "text"}` to use instead of a large model."""
    large_token_budget: Count = 200_000
    """Prompt plus output tokens of the large model, per run, over all restarts."""
    levels: dict[str, LevelConfig] = Field(default_factory=_default_levels)
    sampling: SamplingConfig = SamplingConfig(max_output_tokens=1024, temperature=0.7)
    max_words: Count = 60
    """Longer principles are retired."""
    leak_ngram: Count = 8
    """Principles that share so many words in a row with a seed are retired."""
    probe_seeds: Count = 32
    """Held-out seeds on which the small model tries a solve or check candidate; the worse half drops out on fewer."""
    probe_drafts: Count = 32
    """Instances that it drafts to try a generate candidate, and as many with a placebo of the same length."""
    probe_output_tokens: Count = 512
    """Longest answer of the small model in a trial."""
    mistake_answers: Count = 4
    """Times that the small model answers each seed for evidence `errors`; one wrong answer is a mistake."""
    min_solve_gain: float = 0.0
    """A solve principle joins the selection when it adds more than this to the accuracy on the probe seeds, and more than this
    over a placebo of its length."""
    prefix_token_budget: Count = 600
    """Tokens of principles in a prompt, counted as characters / 4."""


class VotingConfig(Section):
    """Blind answers to a drafted input, and when they agree."""

    rounds: Annotated[tuple[Count, ...], Field(min_length=1)] = (2, 4, 8)
    """Answers in hand after each round; a vote that is settled stops early."""
    min_agreement: Share | None = None
    """Accepted when at least this share of the answers is equal and no other answer has as many. Default: 0.6 for choices, else 0.5."""

    def least_agreement(self, kind: str) -> float:
        """`min_agreement` for a kind of answer."""
        return self.min_agreement if self.min_agreement is not None else 0.6 if kind == "choice" else 0.5


class GenerationConfig(Section):
    """Writing instances."""

    operations = frozenset({"accepted_rows", "arms", "min_yield", "patience_units", "min_novelty", "novelty_flows"})

    accepted_rows: Count
    """Rows per task and arm in the dataset; may grow on an existing run."""
    target_per: TargetPer = "task"
    """What has an equal number of these rows: each cell, or the cells of each difficulty, context or label; `task`: cells get as many as
    they yield. A part that cannot be filled ends the run."""
    arms: tuple[ArmName, ...] = ("psi",)
    """What is done and compared: base, direct, psi and others (`generation/arms.py`); arms may be added to an existing run."""
    draft: SamplingConfig = SamplingConfig(max_output_tokens=512, temperature=0.9, top_p=0.95)
    answer: SamplingConfig = SamplingConfig(max_output_tokens=512, temperature=0.7)
    voting: VotingConfig = VotingConfig()
    demonstrations: Annotated[int, Field(ge=0)] = 3
    """Seeds of the `demo` split shown in a psi draft prompt."""
    direct_demonstrations: Count = 6
    """Seeds shown in each prompt of the `direct` arm."""
    bundles: Count = 4
    """Bundles per task: over them the generate principles and the demonstrations rotate."""
    difficulties: tuple[str, ...] = ()
    """Words for how hard an instance shall be; a cell for each."""
    contexts: tuple[str, ...] = ()
    """Words for where an instance shall play; a cell for each, with each difficulty."""
    draft_ramp: tuple[Temperature, Temperature] | None = None
    """Temperature of drafts with no row kept yet, and with all of them, instead of `draft.temperature`."""
    demo_leak: Share = 0.001
    """A draft that repeats rare words of its demonstrations is dropped where chance would do so less often than this, one that repeats
    their names or odd numbers less often than ten times this; 0: never."""
    round_trip: bool = False
    """Drop accepted rows of which the small model cannot find a hidden number or label again, given the answer: three requests a row."""
    flows_per_unit: Annotated[int, Field(ge=1, le=256)] = 128
    min_yield: Share = 0.02
    """Stop when fewer than this share of the flows is accepted ..."""
    patience_units: Count = 8
    """... over the flows of so many units of a task, of those that could still be accepted."""
    min_novelty: Share = 0.05
    """A cell gets no more work when less than this share of what it drafts is new, whatever votes say ..."""
    novelty_flows: Count = 256
    """... over its last so many flows, unless it is the last one."""

    @model_validator(mode="after")
    def _divisible(self) -> "GenerationConfig":
        for part, words in {"difficulty": self.difficulties, "context": self.contexts}.items():
            if self.target_per == part and not words:
                raise ValueError(f"target_per: '{part}' divides the rows by {part}, and the recipe names none")
        return self


class CurationConfig(Section):
    """Which rows enter the dataset."""

    min_input_chars: Count = 1
    max_input_chars: Count = 8000
    max_output_chars: Count = 16000
    length_factor: Annotated[float, Field(ge=1)] | None = 1.5
    """Inputs may be so many times shorter and longer than the seeds are; none: no such bound. Counts with at least 12 seeds."""
    max_foreign_letters: Share = 0.1
    """Largest share of letters in scripts that no seed uses."""
    near_duplicate: Share | None = 0.7
    """Jaccard similarity of word 5-grams at which the later of two inputs is dropped; none: exact duplicates only."""
    semantic_duplicate: Share | None = None
    """Cosine of n-gram vectors above which the worse of two inputs is dropped, such as 0.9; none: not looked at."""
    copy_overlap: Share = 0.7
    """ROUGE-L F of an input's content words with those of a seed at which it counts as a copy."""
    copy_ngram: Count = 8
    """Words in a row shared with a seed that make an input a copy."""
    decontaminate_ngram: Count = 13
    """Words in a row shared with an evaluation input that drop a row; shorter inputs must not be equal or contained."""
    max_label_share: Share = 1.0
    """Largest share of one label among a task's rows. Off, as are all four: 0.1, say, needs ten labels. What a cap forbids is generated
    in vain, and a target that it cannot fill ends the run."""
    max_opening_share: Share = 1.0
    """Largest share of one opening (first three words) among a task's rows. Inputs of fixed wording all have the same."""
    max_cell_share: Share = 1.0
    """Largest share of one cell among a task's rows; never less than its even share of the plan. At that share, every
    cell must yield as much as the others."""
    max_principle_share: Share = 1.0
    """Largest share of one principle among a task's rows, but for those of every bundle; never less than an even share of the bundles."""
