import tempfile
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig, PreTrainedTokenizerFast

from generation.errors import TrainingError
from recipes.miniature.tokens import CHAT_TEMPLATE, build_tokenizer
from training.chat import load_encoder

QUESTION, ANSWER = {"role": "user", "content": "rule abc>"}, {"role": "assistant", "content": "cba"}


@cache
def shared_encoder():
    return encoder_with(tempfile.mkdtemp(), CHAT_TEMPLATE)


def encoder_with(folder, template):
    tokenizer: PreTrainedTokenizerFast = build_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return load_encoder(str(folder))


def masked(encoder, talk, loss_on="last_assistant"):
    row = encoder.encode([talk], loss_on)[0]
    return encoder.decode_masked(row.input_ids, row.loss_spans)


def test_the_answer_and_its_end_token_are_supervised_and_nothing_else(tmp_path):
    encoder = encoder_with(tmp_path, CHAT_TEMPLATE)
    assert masked(encoder, [QUESTION, ANSWER]) == "<bos><|user|>rule abc><|assistant|><<cba<eos>>>"


@pytest.mark.parametrize(
    ("loss_on", "text"),
    [
        ("last_assistant", "<bos><|user|>rule abc><|assistant|>cba<eos><|user|>ab<|assistant|><<xyz<eos>>>"),
        ("assistant", "<bos><|user|>rule abc><|assistant|><<cba<eos>>><|user|>ab<|assistant|><<xyz<eos>>>"),
        ("all", "<bos><<<|user|>rule abc><|assistant|>cba<eos><|user|>ab<|assistant|>xyz<eos>>>"),
    ],
)
def test_labels_are_only_on_what_the_recipe_says(tmp_path, loss_on, text):
    talk = [QUESTION, ANSWER, {"role": "user", "content": "ab"}, {"role": "assistant", "content": "xyz"}]
    encoder = encoder_with(tmp_path, CHAT_TEMPLATE)
    assert masked(encoder, talk, loss_on) == text
    assert masked(encoder, [*talk, QUESTION], loss_on) == text


@given(st.lists(st.sampled_from(["user", "assistant", "system"]), max_size=7))
def test_every_answer_ends_with_a_supervised_end_token_and_no_first_token_is_supervised(roles):
    encoder = shared_encoder()
    talk = [{"role": role, "content": "abc"[: 1 + place % 3]} for place, role in enumerate(roles)]
    answers = roles[1:].count("assistant")
    for loss_on, spans in (("assistant", answers), ("last_assistant", min(answers, 1)), ("all", min(answers, 1))):
        row = encoder.encode([talk], loss_on)[0]
        assert len(row.loss_spans) == spans
        assert all(0 < start < end and row.input_ids[end - 1] in encoder.eos_ids for start, end in row.loss_spans)
        assert [end for _, end in row.loss_spans[-1:]] == [len(row.input_ids)] * (spans > 0)


def test_an_answer_may_end_with_any_token_that_ends_generation(tmp_path):
    build_tokenizer().save_pretrained(tmp_path)
    GenerationConfig(eos_token_id=[2, 3]).save_pretrained(tmp_path)
    template = CHAT_TEMPLATE.replace("<eos>", "{{ '<unk>' if message['content'] == 'cba' else '<eos>' }}")
    encoder = encoder_with(tmp_path, template)
    talk = [QUESTION, ANSWER, QUESTION, {"role": "assistant", "content": "xyz"}]
    assert masked(encoder, talk, "assistant").count("<<") == 2
    assert masked(encoder, [QUESTION, ANSWER]).endswith("<<cba<unk>>>")


def test_what_a_template_writes_after_the_end_token_is_not_trained_on(tmp_path):
    encoder = encoder_with(tmp_path, CHAT_TEMPLATE.replace("<eos>", "<eos>\n"))
    row = encoder.encode([[QUESTION, ANSWER]])[0]
    assert row.input_ids[-1] == encoder.end_id == encoder.tokenizer.eos_token_id
    assert "<<cba<eos>>>\\n<|user|>" in masked(encoder, [QUESTION, ANSWER, QUESTION, ANSWER], "assistant")


def test_a_token_that_spans_the_end_of_the_prompt_is_split_as_an_engine_would_see_it(tmp_path):
    encoder = encoder_with(tmp_path, CHAT_TEMPLATE.replace("<|assistant|>", "P"))
    assert encoder.tokenizer.tokenize("P: x") == ["P: ", "x"]
    row = encoder.encode([[QUESTION, {"role": "assistant", "content": ": x"}]])[0]
    prompt = encoder.tokenizer.apply_chat_template([QUESTION], add_generation_prompt=True)["input_ids"]
    assert row.input_ids[: len(prompt)] == prompt
    assert row.loss_spans == [(len(prompt), len(row.input_ids))]
    assert encoder.tokenizer.decode(row.input_ids[len(prompt) :]) == ": x<eos>"


def test_a_template_with_an_end_token_of_its_own_adds_it_to_those_that_stop_generation(tmp_path):
    encoder = encoder_with(tmp_path, CHAT_TEMPLATE.replace("<eos>", "<|user|>"))
    turn_end = encoder.tokenizer.convert_tokens_to_ids("<|user|>")
    assert encoder.end_id == turn_end
    assert encoder.eos_ids == (encoder.tokenizer.eos_token_id, turn_end)


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (None, "no chat template"),
        (CHAT_TEMPLATE.replace("<eos>", ""), "never learn to stop"),
        (
            CHAT_TEMPLATE.replace("<eos>", "{% if message['content'] != 'cba' %}<eos>{% endif %}"),
            "without an end token",
        ),
        (
            CHAT_TEMPLATE.replace("<|assistant|>{{", "<|assistant|>say {{").replace("}<|assistant|>{%", "}say{%"),
            "prefix",
        ),
    ],
    ids=["none", "no-end", "sometimes-no-end", "unstable"],
)
def test_a_template_that_cannot_be_trained_on_is_refused(tmp_path, template, complaint):
    with pytest.raises(TrainingError, match=complaint):
        encoder_with(tmp_path, template).encode([[QUESTION, ANSWER]])


@pytest.mark.parametrize("loss_on", ["last_assistant", "assistant", "all"])
@pytest.mark.parametrize("talk", [[], [QUESTION], [QUESTION, QUESTION], [ANSWER]])
def test_a_conversation_without_an_answer_has_nothing_to_supervise(tmp_path, talk, loss_on):
    assert encoder_with(tmp_path, CHAT_TEMPLATE).encode([talk], loss_on)[0].loss_spans == []


def test_a_template_that_renders_earlier_turns_differently_is_refused_where_they_are_supervised(tmp_path):
    forgetful = CHAT_TEMPLATE.replace(
        "{{ message['content'] }}<eos>", "{{ message['content'] if loop.last else '' }}<eos>"
    )
    encoder, talk = encoder_with(tmp_path, forgetful), [QUESTION, ANSWER, QUESTION, ANSWER]
    assert masked(encoder, talk).endswith("<|assistant|><eos><|user|>rule abc><|assistant|><<cba<eos>>>")
    with pytest.raises(TrainingError, match="loss_on = 'last_assistant'"):
        encoder.encode([talk], "assistant")


def test_the_same_text_has_the_same_key_and_another_text_another(tmp_path):
    encoder = encoder_with(tmp_path, CHAT_TEMPLATE)
    keys = [row.text_key for row in encoder.encode([[QUESTION, ANSWER], [ANSWER, QUESTION], [QUESTION, ANSWER]])]
    assert keys[0] == keys[2] != keys[1]
