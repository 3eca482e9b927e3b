"""Turns conversations into tokens through the model's own chat template, and says which tokens are supervised."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from generation.errors import TrainingError
from generation.storage import digest

Conversation = Sequence[dict[str, str]]
"""Messages with `role` and `content`; the last one is the assistant's, and the only one that is supervised."""

_PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation in tokens.

    Attributes:
        input_ids: The prompt exactly as an engine would render it, the answer and the end token.
        prompt_tokens: How many of them are the prompt; the rest is supervised.
    """

    input_ids: list[int]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class ChatEncoder:
    """A tokenizer with its chat template.

    Attributes:
        tokenizer: A Hugging Face tokenizer.
        end_id: The token that ends the assistant's turn.
        eos_ids: Every token that must end generation: those of the model, of the tokenizer, and `end_id`.
        digest: Changes whenever the encoding of some conversation might.
    """

    tokenizer: Any
    end_id: int
    eos_ids: tuple[int, ...]
    digest: str

    @property
    def pad_id(self) -> int:
        """A token for padding; which one does not matter, it is never supervised and nothing sees it."""
        return self.end_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded]:
        """Encode conversations, in order.

        Raises:
            TrainingError: A conversation has nothing to supervise, or the template renders the prompt differently once the answer is there.
        """
        if any(talk[-1]["role"] != "assistant" for talk in conversations):
            raise TrainingError(
                "column `messages`: the last message of a row is not the assistant's, so there is nothing to supervise"
            )
        prompts = [self._render(talk[:-1], prompt=True) for talk in conversations]
        wholes = [self._render(talk, prompt=False) for talk in conversations]
        pairs = zip(self._ids(prompts), self._ids(wholes), prompts, wholes, strict=True)
        return [self._encoded(*pair) for pair in pairs]

    def _encoded(self, prompt_ids: list[int], ids: list[int], prompt: str, whole: str) -> Encoded:
        if not whole.startswith(prompt):
            raise TrainingError(
                f"{self.tokenizer.name_or_path}: the chat template does not render the prompt as a prefix of the conversation, so "
                "training would differ from serving; use a template that does"
            )
        count = len(prompt_ids)
        if ids[:count] != prompt_ids:  # a token spans the border: keep the prompt as an engine sees it
            ids = prompt_ids + self._ids([whole[len(prompt) :]])[0]
        end = max((place for place in range(count, len(ids)) if ids[place] == self.end_id), default=-1)
        if end < 0 or count == 0:
            raise TrainingError(
                f"{self.tokenizer.name_or_path}: the chat template leaves nothing to supervise in a conversation: it renders no prompt, "
                "or no end token after the answer"
            )
        return Encoded(ids[: end + 1], count)

    def _render(self, talk: Conversation, *, prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(list(talk), tokenize=False, add_generation_prompt=prompt)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]


def load_encoder(folder: str) -> ChatEncoder:
    """The encoder of a model folder.

    Raises:
        TrainingError: It has no tokenizer, no chat template, or a template that does not end the assistant's turn.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{folder}: cannot load the tokenizer: {error}") from error
    if not tokenizer.chat_template:
        raise TrainingError(
            f"{folder}: the tokenizer has no chat template, so what the model shall see is unknown; start from an instruction-tuned "
            "model, or put a chat_template.jinja into the folder"
        )
    eos_ids = _known_eos_ids(folder, tokenizer)
    end_id = _end_id(tokenizer, eos_ids)
    return ChatEncoder(tokenizer, end_id, tuple(sorted({*eos_ids, end_id})), _digest(folder, tokenizer, end_id))


def _known_eos_ids(folder: str, tokenizer: Any) -> set[int]:
    known: Any = []
    if (Path(folder) / "generation_config.json").exists():
        known = GenerationConfig.from_pretrained(folder).eos_token_id
    known = known if isinstance(known, list) else [known]
    return {token for token in (*known, tokenizer.eos_token_id) if token is not None}


def _end_id(tokenizer: Any, eos_ids: set[int]) -> int:
    prompt = tokenizer.apply_chat_template([_PROBE[0]], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(list(_PROBE), tokenize=False)
    special = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    tail = tokenizer(whole.removeprefix(prompt), add_special_tokens=False)["input_ids"]
    end = next((token for token in reversed(tail) if token in special | eos_ids), None)
    if end is None:
        raise TrainingError(
            f"{tokenizer.name_or_path}: the chat template does not end the assistant's turn with a special token, so the model would "
            "never learn to stop; end it with the tokenizer's eos token"
        )
    return end


def _digest(folder: str, tokenizer: Any, end_id: int) -> str:
    patterns = ("tokenizer*", "*.model", "vocab*", "merges*", "added_tokens*", "special_tokens*")
    files = sorted({path for pattern in patterns for path in Path(folder).glob(pattern)})
    contents = [path.read_bytes().hex() for path in files]
    return digest(*(path.name for path in files), *contents, str(tokenizer.chat_template), str(end_id))
