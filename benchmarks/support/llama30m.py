"""A Llama of 30 million random weights, its tokenizer, and work for it: 272-token prompts in 64 groups, log-normal output lengths.

    folder = Path(tempfile.mkdtemp())
    make_model(folder)                   # a model folder as vLLM and transformers load it; seconds, no network
    words = Words.of(folder)
    texts = [words.prompt(number) for number in range(2000)]      # each is exactly 272 tokens; groups take turns in runs of RUN
    lengths = output_lengths(2000)       # mean 63, at most 400: max_tokens of each

The model never ends of itself (it has no end token), so `max_tokens` alone decides how long an output is. Weights, vocabulary, prompts and
lengths are the same every time on one Python version: the vocabulary is learnt from the sources of its standard library.
"""

import json
import math
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GROUPS = 64
PROMPT_TOKENS = 272
PREFIX_TOKENS = 240
"""Tokens of a prompt that its whole group shares. Blocks of 32 tokens hold 224 of them, blocks of 128 hold 128, as they do for any prefix of
128 to 255 tokens."""
RUN = 8
"""Prompts of one group in a row."""
MEAN_OUTPUT_TOKENS = 63
MAX_OUTPUT_TOKENS = 400

_SIGMA = 0.8
_VOCABULARY = 16_384
_CORPUS_BYTES = 4 * 2**20
_SHAPE = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
}


@dataclass(frozen=True)
class Words:
    """Words that are one token each, wherever they stand: what prompts are made of.

    Attributes:
        words: With the space before each.
    """

    words: tuple[str, ...]

    @staticmethod
    def of(folder: Path) -> "Words":
        """The words in the vocabulary of a model folder."""
        vocabulary: dict[str, int] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"][
            "vocab"
        ]
        return Words(tuple(sorted(f" {token[1:]}" for token in vocabulary if token[0] == "Ġ" and _is_word(token[1:]))))

    def prefix(self, group: int) -> str:
        """What all prompts of a group begin with: `PREFIX_TOKENS` tokens."""
        return self._text(f"group {group}", PREFIX_TOKENS)

    def suffix(self, number: int) -> str:
        """The rest of a prompt."""
        return self._text(f"prompt {number}", PROMPT_TOKENS - PREFIX_TOKENS)

    def prompt(self, number: int) -> str:
        """One of any number of prompts, no two alike."""
        return self.prefix(number // RUN % GROUPS) + self.suffix(number)

    def _text(self, seed: str, count: int) -> str:
        return "".join(random.Random(seed).choices(self.words, k=count))


def output_lengths(count: int, seed: int = 0) -> list[int]:
    """Log-normal lengths (sigma 0.8) of mean 63, at most 400; the first of them do not depend on how many there are."""
    draw = random.Random(seed)
    mu = math.log(MEAN_OUTPUT_TOKENS) - _SIGMA**2 / 2
    return [min(MAX_OUTPUT_TOKENS, max(1, round(draw.lognormvariate(mu, _SIGMA)))) for _ in range(count)]


def make_model(folder: Path) -> None:
    """Write tokenizer, configuration and weights."""
    import torch
    import transformers

    library: Any = transformers  # its classes have no usable types
    write_tokenizer(folder)
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = library.LlamaConfig(vocab_size=_VOCABULARY, tie_word_embeddings=False, **_SHAPE, **ends)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    library.LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_rng_state(state)


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer alone."""
    import transformers

    library: Any = transformers
    tokenizer = library.PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), clean_up_tokenization_spaces=False)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> Any:
    import tokenizers

    library: Any = tokenizers
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(vocab_size=_VOCABULARY, show_progress=False)
    made.train_from_iterator(_corpus(), trainer)
    return made


def _corpus() -> list[str]:
    """ASCII only: then any tokens in a row are a readable text."""
    texts: list[str] = []
    left = _CORPUS_BYTES
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore").encode("ascii", "ignore").decode()[:left]
        texts.append(text)
        left -= len(text)
    return texts


def _is_word(text: str) -> bool:
    return len(text) > 3 and text.isascii() and text.isalpha() and text.islower()
