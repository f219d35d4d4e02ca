"""Tokenize a conversation so that its markers are the template's own, whatever the messages say.

Two renderings are compared: the conversation itself, and its skeleton, the same conversation with every content
replaced by one harmless word. Both must show the same markers. Where a message holds marker text, that text is
tokenized in two halves: an unlikely character is put inside it, and its tokens are taken out again, so the decoded
text stays as it was while no marker's token ids occur.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from segattn.errors import TemplateError
from segattn.templates.markers import MarkerTable
from segattn.templates.probes import Message, Rendering, encode, word

__all__ = ["ConversationTokenizer"]

# Characters to break text with: unassigned planes and private use, tried in this order. One is refused where
# the tokenizer merges it with its neighbors.
_BREAKS = ("\U00100000", "\U000f0000", "\ue000", "\uf8ff")
_CONTENT_KEYS = ("content", "reasoning_content", "reasoning", "thinking")
_KEPT_KEYS = ("role", "name", "id", "tool_call_id", "type")
_CACHED_SKELETONS = 512

Signature = tuple[tuple[str, str], ...]


class ConversationTokenizer:
    """Renders and tokenizes conversations with one tokenizer and the markers of its template.

    Args:
        tokenizer: a fast tokenizer of transformers, with a chat template.
        table: the template's markers.
        special_texts: special tokens that the template writes; in a message they are plain text.
        roles: roles that the markers are known to place; None: any.
    """

    def __init__(
        self, tokenizer: Any, table: MarkerTable, special_texts: Sequence[str], roles: Sequence[str] | None
    ) -> None:
        self.tokenizer = tokenizer
        self.table = table
        self.roles = roles
        self.special_texts = tuple(special_texts)
        added = set(tokenizer.added_tokens_decoder)
        self.plain_texts = tuple(
            dict.fromkeys(m.text.strip() for m in table.markers if not added & set(m.ids) and m.text.strip())
        )
        self._skeletons: OrderedDict[str, Signature] = OrderedDict()

    def ids(self, messages: Sequence[Message], inputs: Mapping[str, Any], options: Mapping[str, Any]) -> list[int]:
        """Return the token ids of a conversation.

        Args:
            messages: the conversation.
            inputs: `tools` and `documents`, which the template may write out like messages.
            options: the other arguments of the tokenizer's `apply_chat_template`.

        Raises:
            TemplateError: a role that the markers do not place; a message whose text cannot be kept apart from
                the markers. Names the message.
        """
        self._check_roles(messages)
        conversation = {"messages": list(messages), **inputs}
        expected = self._expected(conversation, options)
        text = self._render(conversation, options)
        if not self._typed_anywhere(conversation):
            ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            if self._signature(ids) == expected:
                return ids
        broken = self._with_breaks(conversation, options, text, expected)
        if broken is None:
            raise self._refusal(conversation, options, expected)
        return broken

    def _check_roles(self, messages: Sequence[Message]) -> None:
        for index, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise TemplateError(
                    f"message {index} is {message!r:.100}; expected a dict with a role and a content, e.g. "
                    "{'role': 'user', 'content': 'Hello'}"
                )
            if self.roles is not None and message["role"] not in self.roles:
                raise TemplateError(
                    f"message {index} has the role {message['role']!r}; the markers of this chat template are known "
                    f"for {', '.join(self.roles)}. Name this role's marker with segattn.Segmenter.from_markers"
                )

    def _render(self, conversation: Mapping[str, Any], options: Mapping[str, Any]) -> str:
        arguments = dict(conversation)
        messages = arguments.pop("messages")
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **arguments, **options))

    def _signature(self, ids: Sequence[int]) -> Signature:
        return tuple((event.marker.kind, event.marker.role) for event in self.table.events(ids))

    # The skeleton: what the template itself writes.

    def _expected(self, conversation: Mapping[str, Any], options: Mapping[str, Any]) -> Signature:
        skeleton = self._skeleton(conversation)
        key = json.dumps([skeleton, dict(options)], default=repr, sort_keys=True)
        if key in self._skeletons:
            self._skeletons.move_to_end(key)
            return self._skeletons[key]
        rendering = encode(self.tokenizer, self._render(skeleton, options))
        self._check_placement(rendering, conversation["messages"])
        signature = self._signature(rendering.ids)
        self._skeletons[key] = signature
        if len(self._skeletons) > _CACHED_SKELETONS:
            self._skeletons.popitem(last=False)
        return signature

    def _skeleton(self, conversation: Mapping[str, Any]) -> dict[str, Any]:
        messages = [self._bare(message, index) for index, message in enumerate(conversation["messages"])]
        rest = {key: value for key, value in conversation.items() if key != "messages"}
        return {"messages": messages, **{key: _map_text(value, self._harmless) for key, value in rest.items()}}

    def _bare(self, message: Message, index: int) -> Message:
        """A message with its content, thoughts and tool arguments replaced by its word."""

        def replace(text: str) -> str:
            return word(index) if text.strip() else text

        bare: Message = {}
        for key, value in message.items():
            if key in _CONTENT_KEYS:
                bare[key] = _map_text(value, replace, skipped=_KEPT_KEYS)
            elif key == "tool_calls":
                bare[key] = _bare_calls(value, replace)
            else:
                bare[key] = _map_text(value, self._harmless)
        return bare

    def _harmless(self, text: str) -> str:
        return "text" if self._typed(text) else text

    def _check_placement(self, rendering: Rendering, messages: Sequence[Message]) -> None:
        inside = self.table.inside(rendering.ids)
        for index, message in enumerate(messages):
            answer = message["role"] == "assistant"
            for found in re.finditer(word(index), rendering.text):
                if any(inside[i] == answer for i in rendering.tokens_over(*found.span())):
                    where = "inside a segment" if answer else "outside every segment"
                    raise TemplateError(
                        f"message {index} ({message['role']}) would lie {where}: in this conversation the chat "
                        "template writes it without one of the markers "
                        f"{[m.text for m in self.table.markers if m.kind != 'bos']}. Change the order of the messages, "
                        "correct the template, or name its markers with segattn.Segmenter.from_markers"
                    )

    # Marker text in messages.

    def _typed(self, text: str) -> bool:
        return any(special in text for special in self.special_texts) or any(p in text for p in self.plain_texts)

    def _typed_anywhere(self, conversation: Mapping[str, Any]) -> bool:
        found = False

        def look(text: str) -> str:
            nonlocal found
            found = found or any(special in text for special in self.special_texts)
            return text

        _map_text(dict(conversation), look)
        return found

    def _with_breaks(
        self, conversation: Mapping[str, Any], options: Mapping[str, Any], text: str, expected: Signature
    ) -> list[int] | None:
        """Return ids of the same text in which no message's text makes a marker; None if there is no way."""
        longest = max((len(plain) for plain in self.plain_texts), default=2)
        for edges in (False, True):
            for offset in range(1, longest):
                for char in _BREAKS:
                    ids = self._broken(conversation, options, text, char, offset, edges)
                    if ids is not None and self._signature(ids) == expected:
                        return ids
        return None

    def _broken(
        self,
        conversation: Mapping[str, Any],
        options: Mapping[str, Any],
        text: str,
        char: str,
        offset: int,
        edges: bool,
    ) -> list[int] | None:
        """Tokenize with `char` put inside marker text (and, with `edges`, around every text), its tokens removed."""
        if char in text:
            return None

        def insert(value: str) -> str:
            places = {m.start() + 1 for t in self.special_texts for m in _overlapping(t, value)}
            places |= {m.start() + min(offset, len(t) - 1) for t in self.plain_texts for m in _overlapping(t, value)}
            if edges and value.strip():
                places |= {len(value) - len(value.lstrip()), len(value.rstrip())}
            for place in sorted(places, reverse=True):
                value = f"{value[:place]}{char}{value[place:]}"
            return value

        changed = {key: _map_text(value, insert, skipped=("role",)) for key, value in conversation.items()}
        rendered = self._render(changed, options)
        if rendered.replace(char, "") != text:
            return None
        return _without(encode(self.tokenizer, rendered), char)

    def _refusal(
        self, conversation: Mapping[str, Any], options: Mapping[str, Any], expected: Signature
    ) -> TemplateError:
        culprit = "a message"
        messages = conversation["messages"]
        for index, message in enumerate(messages):
            others = [m if i == index else self._bare(m, i) for i, m in enumerate(messages)]
            rendered = self._render({**self._skeleton(conversation), "messages": others}, options)
            if self._signature(encode(self.tokenizer, rendered).ids) != expected:
                culprit = f"message {index} ({message['role']})"
                break
        return TemplateError(
            f"{culprit} holds text that this tokenizer cannot keep apart from the chat template's markers "
            f"({', '.join(repr(t) for t in (*self.plain_texts, *self.special_texts))}); expected messages that do not "
            "change where segments begin and end. Remove or rewrite such text in the message"
        )


def _overlapping(text: str, value: str) -> list[re.Match[str]]:
    """Every occurrence of `text`, overlapping ones too, as matches of length zero."""
    return list(re.finditer(f"(?={re.escape(text)})", value))


def _without(rendering: Rendering, char: str) -> list[int] | None:
    """Return the ids without the tokens of `char`; None if one of them also stands for a neighbor."""
    kept = []
    for token, (start, end) in zip(rendering.ids, rendering.offsets, strict=True):
        covered = rendering.text[start:end]
        if char not in covered:
            kept.append(token)
        elif covered.strip(char):
            return None
    return kept


def _map_text(value: Any, change: Callable[[str], str], skipped: Sequence[str] = ()) -> Any:
    """Change every string inside lists, tuples and dicts, but not dict keys, nor the values of `skipped` keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {k: v if k in skipped else _map_text(v, change, skipped) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_map_text(item, change, skipped) for item in value]
    return value


def _bare_calls(calls: Any, replace: Callable[[str], str]) -> Any:
    """Tool calls with the strings of their arguments replaced; names and ids stay, other messages refer to them."""
    if not isinstance(calls, list | tuple):
        return calls
    return [_bare_call(entry, replace) for entry in calls]


def _bare_call(entry: Any, replace: Callable[[str], str]) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    bare = dict(entry)
    if "function" in bare:
        bare["function"] = _bare_call(bare["function"], replace)
    if "arguments" in bare:
        given = bare["arguments"]
        bare["arguments"] = json.dumps({"text": replace("x")}) if isinstance(given, str) else _map_text(given, replace)
    return bare
