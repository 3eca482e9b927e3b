import pytest
from transformers import PreTrainedTokenizerFast

from generation.errors import TrainingError
from recipes.miniature.tokens import CHAT_TEMPLATE, build_tokenizer
from training.chat import load_encoder

QUESTION, ANSWER = {"role": "user", "content": "rule abc>"}, {"role": "assistant", "content": "cba"}


def encoder_with(folder, template):
    tokenizer: PreTrainedTokenizerFast = build_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return load_encoder(str(folder))


def test_the_answer_and_its_end_token_are_supervised_and_nothing_else(tmp_path):
    encoder = encoder_with(tmp_path, CHAT_TEMPLATE)
    row = encoder.encode([[QUESTION, ANSWER]])[0]
    decode = encoder.tokenizer.decode
    assert decode(row.input_ids[: row.prompt_tokens]) == "<bos><|user|>rule abc><|assistant|>"
    assert decode(row.input_ids[row.prompt_tokens :]) == "cba<eos>"


def test_only_the_last_turn_of_a_conversation_is_supervised(tmp_path):
    encoder = encoder_with(tmp_path, CHAT_TEMPLATE)
    row = encoder.encode([[QUESTION, ANSWER, QUESTION, {**ANSWER, "content": "xyz"}]])[0]
    assert encoder.tokenizer.decode(row.input_ids[row.prompt_tokens :]) == "xyz<eos>"


def test_what_a_template_writes_after_the_end_token_is_not_trained_on(tmp_path):
    encoder = encoder_with(tmp_path, CHAT_TEMPLATE.replace("<eos>", "<eos>\n"))
    row = encoder.encode([[QUESTION, ANSWER]])[0]
    assert row.input_ids[-1] == encoder.end_id == encoder.tokenizer.eos_token_id


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
            "nothing to supervise",
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


def test_a_conversation_without_an_answer_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="nothing to supervise"):
        encoder_with(tmp_path, CHAT_TEMPLATE).encode([[QUESTION, QUESTION]])
