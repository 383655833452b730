"""Conversations through chat templates: what the model reads, what the loss is on, and what cannot be rendered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoints import TEMPLATES, tiny_tokenizer

from proxymix.config import SourceConfig, validated
from proxymix.data.chat import PLAIN_TEMPLATE, as_chat, chat_example
from proxymix.data.encoding import encode_split, example_ids
from proxymix.data.sources import configured_source
from proxymix.errors import UserError
from proxymix.evaluation.generation import answer_length
from proxymix.types import Example

CHAT = chat_example([("user", "one two"), ("assistant", "three"), ("user", "four?")], "five six")


def texts(example, tokenizer):
    prompt, answer = example_ids(example, tokenizer)
    return tokenizer.decode(prompt), tokenizer.decode(answer)


@pytest.mark.parametrize(
    ("architecture", "prompt", "answer"),
    [
        (
            "llama",
            "<bos><|start_header_id|>user<|end_header_id|>\n\none two<eos><|start_header_id|>assistant<|end_header_id|>\n\nthree<eos>"
            "<|start_header_id|>user<|end_header_id|>\n\nfour?<eos><|start_header_id|>assistant<|end_header_id|>\n\n",
            "five six<eos>",
        ),
        ("mistral", "<bos>[INST] one two [/INST] three<eos>[INST] four? [/INST]", " five six<eos>"),
        (
            "qwen2",
            "<|im_start|>user\none two<eos>\n<|im_start|>assistant\nthree<eos>\n<|im_start|>user\nfour?<eos>\n<|im_start|>assistant\n",
            "five six<eos>",
        ),
    ],
)
def test_a_conversation_is_as_the_model_was_made_for(architecture, prompt, answer):
    assert texts(CHAT, tiny_tokenizer(architecture)) == (prompt, answer)


@pytest.mark.parametrize("architecture", [name for name, template in TEMPLATES.items() if template])
def test_the_loss_is_on_the_answer_and_its_end_alone(architecture):
    tokenizer = tiny_tokenizer(architecture)
    tokenizer.pad_token = tokenizer.eos_token
    split = encode_split([CHAT, as_chat(Example("one", "two"))], tokenizer, 200)
    learnt = [tokenizer.decode(labels[labels != -100]).strip() for labels in split.labels]
    assert learnt == ["five six<eos>", "two<eos>"]
    assert answer_length(CHAT, tokenizer) == int((split.labels[0] != -100).sum())


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), st.text("ab :\n", min_size=1)), min_size=1, max_size=4))
def test_the_plain_template_writes_what_the_prompt_says(messages):
    tokenizer = tiny_tokenizer("llama")
    tokenizer.chat_template = PLAIN_TEMPLATE
    example = chat_example(messages, "one")
    prompt, answer = example_ids(example, tokenizer)
    assert (prompt, answer) == example_ids(Example(example.prompt, "one"), tokenizer)
    assert answer == [*tokenizer("one", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def test_an_end_of_turn_that_is_no_end_token_is_followed_by_one():
    tokenizer = tiny_tokenizer("llama")
    tokenizer.chat_template = TEMPLATES["llama"].replace("<eos>", "<end_of_turn>\n")
    assert texts(CHAT, tokenizer)[1] == "five six<end_of_turn><eos>"


def test_messages_without_a_template_are_the_users_to_mend():
    with pytest.raises(UserError, match=r"^model.chat_template: own needs a tokenizer with a chat template where messages are used, got none in "):
        example_ids(CHAT, tiny_tokenizer("gpt_neox"))


def test_what_a_template_refuses_is_told_with_the_conversation():
    with pytest.raises(UserError, match=r"cannot render the conversation 'system: be brief.*roles must alternate"):
        example_ids(chat_example([("system", "be brief"), ("user", "one")], "two"), tiny_tokenizer("mistral"))


def test_a_template_that_hides_the_answers_place_is_refused():
    tokenizer = tiny_tokenizer("llama")
    tokenizer.chat_template = "{{ messages | length }}{{ messages[-1]['content'] }}"
    with pytest.raises(UserError, match="must write the prompt alike with and without its answer"):
        example_ids(CHAT, tokenizer)


def test_prompts_become_a_users_message_when_asked():
    spec = SourceConfig(format="builtin", task="reverse", world="heldout-0")
    plain, chat = (configured_source(validated({"name": "x", "sequence": {"tasks": "long", "chat": chat}}, "x"), spec) for chat in (False, True))
    assert not any(example.messages for example in plain.train)
    assert [example.messages for example in chat.test] == [(("user", example.prompt),) for example in plain.test]
    assert [as_chat(example) for example in chat.train] == list(chat.train)
