"""A user's message as the text that a model expects before its answer: its own chat template."""

from __future__ import annotations

from typing import Any

PLAIN = "Question: {message}\nAnswer:"
"""For a model without a template; the published audit uses a template for base models too."""


def chat_prompt(tokenizer: Any, message: str) -> str:
    """The prompt after which an answer is written.

    A token with a meaning of its own, such as one that ends a turn, is spelled apart where it stands in the
    message, so that a quoted answer cannot speak in another role.
    """
    for token in sorted(set(tokenizer.all_special_tokens), key=len, reverse=True):
        message = message.replace(token, " ".join((token[:1], token[1:]))) if token else message
    if not getattr(tokenizer, "chat_template", None):
        return PLAIN.replace("{message}", message)
    turns = [{"role": "user", "content": message}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
