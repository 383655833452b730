"""Conversations: as lines for models that know no roles, through the tokenizer's own template for those that do.

    messages + answer → chat template → text → (prompt tokens, answer tokens)

What the template writes before the answer is the prompt; the answer is what follows, up to the end of the assistant's turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError

from proxymix.errors import UserError
from proxymix.types import Example

PLAIN_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""A begin token where there is one, and the `role: content` lines of `chat_example`."""


def chat_example(messages: Sequence[tuple[str, str]], response: str, harmful: bool | None = None) -> Example:
    """An example whose prompt is a conversation.

    Args:
        messages: (role, content) pairs that come before the answer.
        response: the assistant's.
        harmful: see `Example`.

    >>> chat_example([("system", "Be brief."), ("user", "Hi")], "Hello").prompt
    'system: Be brief.\\nuser: Hi\\nassistant: '
    """
    turns = "".join(f"{role}: {content}\n" for role, content in messages)
    return Example(f"{turns}assistant: ", response, harmful, tuple(messages))


def as_chat(example: Example) -> Example:
    """`example` as a conversation of one message, the user's; a conversation stays as it is."""
    return example if example.messages else replace(example, messages=(("user", example.prompt),))


def chat_ids(example: Example, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens of a conversation and of its answer, the end token included.

    Raises:
        UserError: the tokenizer has no chat template, or one that cannot render these messages or does not keep the answer apart.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            f"model.chat_template: own needs a tokenizer with a chat template where messages are used, got none in {tokenizer.name_or_path!r}; "
            "choose a chat model, or set it to plain to have messages as `role: content` lines"
        )
    messages = [{"role": role, "content": content} for role, content in example.messages]
    try:
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": example.response}], tokenize=False).rstrip()
    except TemplateError as error:
        raise UserError(
            f"model.chat_template: cannot render the conversation {example.prompt[:60]!r}: {error}; mend the row or set it to plain"
        ) from error
    if not whole.startswith(prompt):
        raise UserError(
            f"model.chat_template: must write the prompt alike with and without its answer, got {prompt[-40:]!r} and {whole[: len(prompt)][-40:]!r}; "
            "set it to plain, or mend the template"
        )
    asked, all_ids = (list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (prompt, whole))
    # Where a token spans the border, the answer is read as what is generated after exactly this prompt.
    apart = all_ids[: len(asked)] != asked
    answer = list(tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]) if apart else all_ids[len(asked) :]
    ended = answer[-1:] == [tokenizer.eos_token_id]
    return asked, answer if ended else [*answer, tokenizer.eos_token_id]
