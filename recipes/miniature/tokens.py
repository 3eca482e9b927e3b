"""The miniature's tokenizer: one token per word of the formal language, one per character for everything else.

Whole words as tokens keep prompts short (`P: sort down; reverse` is 5 tokens, not 22), which is what lets the two models train in
about an hour on two cores (`models/*/pretrain.jsonl`). Any ASCII text can be encoded.
"""

import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from recipes.miniature.world import FUNCTIONS

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<|user|>", "<|assistant|>")
WORDS = ("P: ", "E:\n", "solve ", "write", "rule", "words", "len ", " not ", "task ", "; ", *FUNCTIONS)
CHARACTERS = ("\n", *(chr(code) for code in range(32, 127)))

CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "<|assistant|>{{ message['content'] }}<eos>{% else %}<|user|>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer in Hugging Face form, with the chat template that both models were trained on."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *WORDS, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    longest_first = sorted(WORDS, key=len, reverse=True)
    pattern = "|".join(re.escape(word).replace("\\ ", " ") for word in longest_first) + r"|[\s\S]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
