"""A Llama whose completions are as long as the prompt says, to the token: every system that is given a prompt does the same work.

Its layers are random and cost what those of any Llama of their size cost, but next to nothing of them reaches the output: embeddings and
output weights alone make a chain. The last word of a prompt, `length17`, is followed by `62x5`, that by `61x12`, and so on down to the
end of the text; what stands after the x is drawn anew each time, so no two texts are alike. So no system needs to be told lengths
(`ignore_eos`, `max_tokens`), and its rows are parsed, answered and accepted as those of any model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<|user|>")
PROMPT_WORDS = tuple(f"w{number}" for number in range(512))
NUM_LENGTHS = 64
NUM_CHOICES = 16
"""Words of each number; two words choose one of `NUM_LENGTHS`."""
LONGEST = 400
NUM_WORDS = len(SPECIAL) + 3 + len(PROMPT_WORDS) + NUM_LENGTHS + LONGEST * NUM_CHOICES
_MEAN_UNCUT, _SIGMA = 65.0, 1.0
_LOGIT = 60.0
"""Of the words that may follow; those of all others are below a third of it."""

CHAT_TEMPLATE = "<bos>{% for message in messages %}<|user|>{{ message['content'] }}{% endfor %}"
"""A prompt ends with the word that the completion follows from."""


_GROUP = 4
"""Heads that share keys and values, as in Llama 3."""


@dataclass(frozen=True)
class Shape:
    """The size of a model."""

    hidden: int
    layers: int
    intermediate: int
    head: int

    def parameters(self) -> int:
        """How many it has, but for the norms."""
        layer = (2 + 2 / _GROUP) * self.hidden**2 + 3 * self.hidden * self.intermediate
        return 2 * self.hidden * NUM_WORDS + round(self.layers * layer)


TINY = Shape(hidden=128, layers=4, intermediate=352, head=32)
"""So small that what stands around the engine counts: `LLM.generate` answers about 90 requests a second with it on one core."""
LLAMA_30M = Shape(hidden=512, layers=8, intermediate=1376, head=64)


def log_normal_lengths() -> tuple[int, ...]:
    """Quantiles of a log-normal distribution, each as likely as the others: mean 63, longest 400."""
    middle, normal = math.log(_MEAN_UNCUT) - _SIGMA**2 / 2, NormalDist()
    drawn = (math.exp(middle + _SIGMA * normal.inv_cdf((i + 0.5) / NUM_LENGTHS)) for i in range(NUM_LENGTHS))
    return tuple(min(LONGEST, max(3, round(length))) for length in drawn)


def write_model(folder: Path, shape: Shape, lengths: Sequence[int]) -> None:
    """Write model and tokenizer; `length17` asks for a completion of `lengths[17]` tokens, its end included."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.hidden // shape.head,
        num_key_value_heads=shape.hidden // shape.head // _GROUP,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    with torch.no_grad():
        _wind(model, tokenizer.get_vocab(), lengths)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _wind(model: Any, vocabulary: dict[str, int], lengths: Sequence[int]) -> None:
    """Set the weights that make the chain: what follows a word points where the next number's words are."""
    import torch

    for layer in model.model.layers:  # what they compute is added to the chain, and must not move it
        layer.self_attn.o_proj.weight.mul_(0.01)
        layer.mlp.down_proj.weight.mul_(0.01)
    hidden = model.config.hidden_size
    directions = torch.nn.functional.normalize(torch.randn(LONGEST + 1, hidden), dim=1)
    comes_next, stands_for = model.model.embed_tokens.weight, model.lm_head.weight
    stands_for.zero_()
    stands_for[vocabulary["<eos>"]] = directions[0]
    for index, length in enumerate(lengths):
        comes_next[vocabulary[f"length{index}"]] = directions[length - 1]
    for number in range(1, LONGEST + 1):
        for choice in range(NUM_CHOICES):
            word = vocabulary[f"{number}x{choice}"]
            comes_next[word], stands_for[word] = directions[number - 1], directions[number]
    # The last norm makes every hidden state `sqrt(hidden)` long.
    comes_next.mul_(math.sqrt(hidden))
    stands_for.mul_(_LOGIT / math.sqrt(hidden))


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = (f"{number}x{choice}" for number in range(1, LONGEST + 1) for choice in range(NUM_CHOICES))
    lengths = (f"length{index}" for index in range(NUM_LENGTHS))
    words = (*SPECIAL, "write", "solve", "now", *PROMPT_WORDS, *lengths, *numbers)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<|user|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
