"""Turning a request's text into token ids, with the shared prefix encoded once.

A prompt is `before + prefix + text + after`, where `before` and `after` are the chat template around a user message. The *head*
(`before + prefix`) is encoded once per prefix, the *tail* per request. Where that would give other ids than encoding the whole, which is
checked at the first use of each prefix, whole prompts are encoded instead.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

_MAX_HEADS = 1024
_MAX_PROMPTS = 512
"""Whole prompts that are remembered: all drafts of a cell are one, and so are blind answers to one input."""
_MARKER = "psi-user-message"
_METHODS = ("encode", "_encode_plus", "decode", "_decode", "batch_decode")
_COMMON = frozenset({"transformers.tokenization_utils_base", "transformers.tokenization_utils_tokenizers"})
"""Where these methods come from in tokenizers that have none of their own."""


class PromptEncoder:
    """Encodes prompts for one tokenizer. Not thread-safe."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._inner = _inner(tokenizer)
        self._chat = bool(getattr(tokenizer, "chat_template", None))
        self._bos = [] if self._chat or tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        framed = self._framed(f" {_MARKER} ")
        self._strips = f" {_MARKER} " not in framed
        self._before, _, self._after = self._framed(_MARKER).partition(_MARKER)
        self._heads: OrderedDict[str, list[int] | None] = OrderedDict()
        self._prompt = lru_cache(_MAX_PROMPTS)(self._encode)

    def encode(self, prefix: str, text: str) -> list[int]:
        """Token ids of the prompt of a user message `prefix + text`."""
        return list(self._prompt(prefix, text))

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Completions as texts, without special tokens."""
        if not ids:  # the tokenizer takes an empty list for one empty sequence
            return []
        if self._inner is not None:
            return [self._inner.decode(one, skip_special_tokens=True) for one in ids]
        return self._tokenizer.batch_decode([list(one) for one in ids], skip_special_tokens=True)

    def _encode(self, prefix: str, text: str) -> list[int]:
        if prefix not in self._heads:
            self._heads[prefix] = self._stable_head(prefix, text)
            if len(self._heads) > _MAX_HEADS:
                self._heads.popitem(last=False)
        self._heads.move_to_end(prefix)
        head = self._heads[prefix]
        return self._whole(prefix, text) if head is None else head + self._tail(text)

    def _stable_head(self, prefix: str, text: str) -> list[int] | None:
        head = self._bos + self._ids(self._before + (prefix.lstrip() if self._strips else prefix))
        return head if head + self._tail(text) == self._whole(prefix, text) else None

    def _tail(self, text: str) -> list[int]:
        return self._ids((text.rstrip() if self._strips else text) + self._after)

    def _whole(self, prefix: str, text: str) -> list[int]:
        return self._bos + self._ids(self._framed(prefix + text))

    def _framed(self, content: str) -> str:
        if not self._chat:
            return content
        message = {"role": "user", "content": content}
        return self._tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)

    def _ids(self, text: str) -> list[int]:
        if not text:
            return []
        if self._inner is not None:
            return self._inner.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return self._tokenizer.encode(text, add_special_tokens=False)


def _inner(tokenizer: Any) -> Any:
    """The tokenizer of the `tokenizers` library inside, where transformers adds nothing of its own to encoding and decoding; else None.

    What is around it takes 25 us of each prompt and two thirds of the time of a short decode.
    """
    origins = {getattr(type(tokenizer), name).__module__ for name in _METHODS}
    if not origins <= _COMMON or not hasattr(tokenizer, "backend_tokenizer") or tokenizer.clean_up_tokenization_spaces:
        return None
    inner = tokenizer.backend_tokenizer
    inner.no_truncation()
    inner.no_padding()
    return inner
