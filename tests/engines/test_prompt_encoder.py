import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from generation.engines.prompts import PromptEncoder

TEMPLATE = "<s>[user] {{ messages[0]['content'] }} [end]{% if add_generation_prompt %}[bot] {% endif %}"


def tokenizer(template: str | None, merges: bool = False) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer of ASCII; with `merges`, "ab" is one token, so a boundary between a and b is not stable."""
    characters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *characters, *(["ab"] if merges else [])])}
    inner = Tokenizer(models.BPE(vocabulary, [("a", "b")] if merges else [], unk_token="</s>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


texts = st.text(alphabet="ab c", max_size=6)


@pytest.mark.parametrize("template", [TEMPLATE, None], ids=["chat", "plain"])
@settings(deadline=None)
@given(prefix=texts, first=texts)
def test_the_first_prompt_of_a_prefix_has_the_ids_of_the_whole(template: str | None, prefix: str, first: str):
    inner = tokenizer(template, merges=True)
    whole = prefix + first
    if template is not None:
        message = [{"role": "user", "content": whole}]
        whole = inner.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    expected = inner.encode(whole, add_special_tokens=False)
    bos = [] if template is not None else [inner.bos_token_id]
    assert PromptEncoder(inner).encode(prefix, first) == bos + expected


def test_where_the_boundary_is_not_stable_whole_prompts_are_encoded():
    encoder = PromptEncoder(tokenizer(None, merges=True))
    merged = tokenizer(None, merges=True).encode("cab", add_special_tokens=False)
    assert encoder.encode("ca", "b")[1:] == merged
    assert encoder.encode("ca", "b")[1:] == merged
    assert len(merged) == 2


def test_a_template_that_strips_its_content_is_followed():
    stripping = TEMPLATE.replace("content'] }}", "content'] | trim }}")
    inner = tokenizer(stripping)
    shown = inner.decode(PromptEncoder(inner).encode("  principles\n", " text  "))
    assert shown == "<s>[user] principles</s> text [end][bot] "


def test_prompts_of_one_prefix_begin_with_the_same_ids():
    encoder = PromptEncoder(tokenizer(TEMPLATE))
    one, two = encoder.encode("shared part ", "first"), encoder.encode("shared part ", "second one")
    length = len(tokenizer(TEMPLATE).encode("<s>[user] shared part ", add_special_tokens=False))
    assert one[:length] == two[:length]


def test_completions_are_decoded_without_special_tokens():
    inner = tokenizer(TEMPLATE)
    ids = [inner.encode(text, add_special_tokens=False) for text in ("a b", "", "c</s>")]
    assert PromptEncoder(inner).decode(ids) == ["a b", "", "c"]


class Shouting(PreTrainedTokenizerFast):
    """A class with a way of its own to decode and to encode."""

    def _decode(self, *arguments, **settings):
        return super()._decode(*arguments, **settings).upper()

    def _encode_plus(self, text, *arguments, **settings):
        return super()._encode_plus(text.lower(), *arguments, **settings)


def with_inner(kind=PreTrainedTokenizerFast, **settings) -> PreTrainedTokenizerFast:
    inner = tokenizer(None).backend_tokenizer
    inner.normalizer = normalizers.Replace("~", " ")
    inner.enable_truncation(3)
    return kind(tokenizer_object=inner, eos_token="</s>", **settings)


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_inner(),
        lambda: with_inner(Shouting),
        lambda: with_inner(clean_up_tokenization_spaces=True, clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True),
        lambda: with_inner(split_special_tokens=True),
    ],
    ids=["plain", "own methods", "spaces cleaned up", "special tokens split"],
)  # fmt: skip
@settings(deadline=None, max_examples=50)
@given(texts=st.lists(st.text(alphabet="abAB .~", max_size=8) | st.just("</s>a .")))
def test_every_tokenizer_encodes_and_decodes_as_transformers_would(make, texts: list[str]):
    shown, encoder = make(), PromptEncoder(make())
    ids = [shown.encode(text, add_special_tokens=False) if text else [] for text in texts]
    assert [encoder.encode("", text) for text in texts] == ids
    assert encoder.decode(ids) == [shown.decode(one, skip_special_tokens=True) for one in ids]
