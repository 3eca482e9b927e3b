"""Turns conversations into tokens through the model's own chat template, and says which tokens are supervised."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from transformers import AutoTokenizer, GenerationConfig

from generation.errors import TrainingError
from generation.storage import digest

Conversation = Sequence[dict[str, str]]
"""Messages with `role` and `content`."""

LossOn = Literal["last_assistant", "assistant", "all"]
"""As in `TrainingConfig.loss_on`."""

_PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation in tokens.

    Attributes:
        input_ids: Every prompt exactly as an engine would render it, every answer with its end token; nothing after the last
            supervised token.
        loss_spans: The tokens that are supervised, as (start, end), end excluded; never the first one, which nothing predicts. Empty
            where there is none.
        text_key: 64 bits that tell the text of the conversation from others.
    """

    input_ids: list[int]
    loss_spans: list[tuple[int, int]]
    text_key: int

    def truncated(self, tokens: int) -> "Encoded":
        """The first tokens of it."""
        spans = [(start, min(end, tokens)) for start, end in self.loss_spans if start < tokens]
        return Encoded(self.input_ids[:tokens], spans, self.text_key)


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

    def encode(self, conversations: Sequence[Conversation], loss_on: LossOn = "last_assistant") -> list[Encoded]:
        """Encode conversations, in order; those with nothing to supervise have no `loss_spans`.

        Raises:
            TrainingError: The template renders what comes before an answer differently once the answer is there, or an answer without
                an end token.
        """
        prefixes = [self._prefixes(talk, loss_on) for talk in conversations]
        ids = iter(self._ids([text for texts in prefixes for text in texts]))
        return [
            self._encoded(texts, list(islice(ids, len(texts))), talk)
            for texts, talk in zip(prefixes, conversations, strict=True)
        ]

    def decode_masked(self, ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> str:
        """A row as text in one line, what is supervised in double angle brackets."""
        text, place = "", 0
        for start, end in spans:
            text += f"{self.tokenizer.decode(ids[place:start])}<<{self.tokenizer.decode(ids[start:end])}>>"
            place = end
        return (text + self.tokenizer.decode(ids[place:])).replace("\n", "\\n")

    def _prefixes(self, talk: Conversation, loss_on: LossOn) -> list[str]:
        """Ever longer beginnings of a conversation, each second one ending with something supervised."""
        turns = [place for place in range(1, len(talk)) if talk[place]["role"] == "assistant"]
        last = turns[-1:]
        if loss_on == "all":
            return [text for turn in last for text in ("", self._render(talk[: turn + 1], prompt=False))]
        return [
            self._render(talk[:end], prompt=end == turn)
            for turn in (turns if loss_on == "assistant" else last)
            for end in (turn, turn + 1)
        ]

    def _encoded(self, texts: list[str], ids: list[list[int]], talk: Conversation) -> Encoded:
        row, before, spans = list[int](), "", list[tuple[int, int]]()
        for place, (text, text_ids) in enumerate(zip(texts, ids, strict=True)):
            if not text.startswith(before):
                raise TrainingError(
                    f"{self.tokenizer.name_or_path}: the chat template does not render the beginning of a conversation as a prefix of "
                    "the whole, so training would differ from serving; use a template that does, or training.loss_on = 'last_assistant'"
                )
            start = len(row)
            # Where a token spans the border, what comes before it stays as an engine sees it.
            row = text_ids if text_ids[:start] == row else row + self._ids([text[len(before) :]])[0]
            if place % 2:
                spans.append((max(start, 1), self._end(row, start)))
            before = text
        return Encoded(row[: spans[-1][1]] if spans else [], spans, _text_key(talk))

    def _end(self, row: list[int], start: int) -> int:
        """Where a supervised span ends: after the end token, for what a template writes after it no engine generates."""
        for place in reversed(range(start, len(row))):
            if row[place] in self.eos_ids:
                return place + 1
        raise TrainingError(
            f"{self.tokenizer.name_or_path}: the chat template renders an answer without an end token, so the model would not learn to "
            "stop; end each answer with the tokenizer's eos token"
        )

    def _render(self, talk: Conversation, *, prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(list(talk), tokenize=False, add_generation_prompt=prompt)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        wanted = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        return self.tokenizer(texts, **wanted)["input_ids"] if texts else []


def _text_key(talk: Conversation) -> int:
    text = "\x1e".join(f"{message['role']}\x1f{message['content']}" for message in talk)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


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
