"""Probe conversations: chats of unlikely words, rendered by a tokenizer's own chat template.

A word that stands nowhere else in the rendered text shows where a message's content went; what lies between two
words was written by the template.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from segattn.errors import TemplateError

__all__ = ["ODD_CONTENTS", "TOOL_NAMES", "Probe", "Prober", "Rendering", "call", "chat", "encode", "message_of", "word"]

Message = dict[str, Any]

# (before, after) the word: what messages may begin and end with. Templates whose markers are plain text
# tokenize them differently beside some of these.
ODD_CONTENTS = (
    ("", ""),
    ("\n", "\n"),
    (" ", " "),
    ("\n\n", "\n\n"),
    ("(", ")."),
    ("1", "2"),
    ("é中", "中é"),
    ("- ", ":"),
    ("#", "#"),
    ("[", "]"),
    ("<", ">"),
    ("🙂", "🙂"),
)

TOOL_NAMES = ("get_weather", "run_query")


def word(number: int) -> str:
    """Return the unlikely word of a message: fixed length, so none is part of another."""
    letters = ""
    for _ in range(3):
        number, digit = divmod(number, 26)
        letters = chr(ord("a") + digit) + letters
    return f"Qvz{letters}"


@dataclass(frozen=True)
class Rendering:
    """A rendered text and its tokens: ids, and the (start, end) characters that each token stands for."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def token_at(self, character: int) -> int:
        """Return the position of the first token that reaches beyond `character`."""
        return next((i for i, (_, end) in enumerate(self.offsets) if end > character), len(self.ids))

    def tokens_over(self, start: int, end: int) -> range:
        """Return the positions of the tokens over the characters `start` to `end` (exclusive)."""
        return range(self.token_at(start), self.token_at(end - 1) + 1)

    def tokens_until(self, start: int, character: int) -> list[int]:
        """Return the ids from position `start` on of tokens that end at or before `character`."""
        taken = []
        for position in range(start, len(self.ids)):
            if self.offsets[position][1] > character:
                break
            taken.append(self.ids[position])
        return taken


def encode(tokenizer: Any, text: str) -> Rendering:
    """Tokenize rendered text as transformers' apply_chat_template does."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = tuple((int(start), int(end)) for start, end in encoding["offset_mapping"])
    return Rendering(text, tuple(encoding["input_ids"]), offsets)


@dataclass(frozen=True)
class Probe:
    """A rendered conversation: its messages, and where each message's word stands, in order of appearance."""

    messages: tuple[Message, ...]
    rendering: Rendering

    @cached_property
    def words(self) -> list[tuple[int, int, str]]:
        """(start, end, role) of every word that the template wrote, ascending."""
        found = []
        for message in self.messages:
            name = message_of(message)
            start = self.rendering.text.find(name) if name else -1
            if start >= 0:
                found.append((start, start + len(name), str(message["role"])))
        return sorted(found)

    def before(self, index: int) -> tuple[int, int]:
        """Return the characters between the word before `words[index]` and that word."""
        return (self.words[index - 1][1] if index else 0, self.words[index][0])

    def between(self, index: int) -> str:
        """Return the text before `words[index]`, from the word before it on."""
        start, end = self.before(index)
        return self.rendering.text[start:end]

    @property
    def tail(self) -> str:
        """The text after the last word."""
        return self.rendering.text[self.words[-1][1] :]


def message_of(message: Message) -> str:
    """Return the probe word that a message holds, "" if none."""
    content = message.get("content")
    found = re.search(r"Qvz[a-z]{3}", content) if isinstance(content, str) else None
    return found.group() if found else ""


def chat(*roles: str, odd: tuple[str, str] = ("", "")) -> list[Message]:
    """Return a conversation of these roles, each message one word of its own between the odd characters.

    The role "call" stands for an assistant message that calls a tool; see `call`.
    """
    return [
        call(0) if role == "call" else {"role": role, "content": f"{odd[0]}{word(number)}{odd[1]}"}
        for number, role in enumerate(roles)
    ]


def call(variant: int, as_text: bool = False, content: str | None = "") -> Message:
    """Return an assistant message that calls a tool. `as_text`: the arguments are a JSON string."""
    arguments: Any = {"place": "Oslo"}
    function = {"name": TOOL_NAMES[variant], "arguments": json.dumps(arguments) if as_text else arguments}
    tool_call = {"id": f"abcdefgh{variant}", "type": "function", "function": function}
    return {"role": "assistant", "content": content, "tool_calls": [tool_call]}


class Prober:
    """Renders and tokenizes conversations with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise TemplateError(
                f"{type(tokenizer).__name__} cannot map tokens to characters; expected a fast tokenizer "
                "(a tokenizer.json, AutoTokenizer.from_pretrained(..., use_fast=True))"
            )
        self.tokenizer = tokenizer
        self.added = {
            int(token): str(added.content)
            for token, added in tokenizer.added_tokens_decoder.items()
            if str(added.content).strip()
        }

    def text(self, messages: Sequence[Message], generation: bool = False) -> str | None:
        """Render a conversation; None where the template refuses it."""
        from jinja2.exceptions import TemplateError as JinjaError

        try:
            rendered = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation
            )
        # What a template does with a conversation that it was not written for: raise_exception, or an
        # operation on a missing or wrongly typed field.
        except (JinjaError, TypeError, ValueError, KeyError, IndexError, AttributeError):
            return None
        return str(rendered)

    def encode(self, text: str) -> Rendering:
        """Tokenize rendered text; see `encode`."""
        return encode(self.tokenizer, text)

    def probe(self, messages: Sequence[Message], generation: bool = False) -> Probe | None:
        """Render and tokenize a conversation; None where the template refuses it or drops a message's word."""
        text = self.text(messages, generation)
        if text is None or any(text.count(message_of(m)) != 1 for m in messages if message_of(m)):
            return None
        return Probe(tuple(messages), self.encode(text))
