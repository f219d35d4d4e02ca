"""The Segmenter: chats and token ids to segment ids."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segattn.errors import SegmentError, TemplateError
from segattn.segments import CAUSAL
from segattn.templates.conversation import ConversationTokenizer
from segattn.templates.markers import POLICIES, MarkerTable

if TYPE_CHECKING:
    from transformers import BatchEncoding

__all__ = ["Segmenter"]

_VERSION = 1
# Written where a segmenter is restricted: a segattn that does not know of this must not read past it.
_VERSION_RESTRICTED = 2

# Arguments of transformers' apply_chat_template that have one possible value here, and why.
_FIXED = {
    "tokenize": (True, "segment ids belong to tokens; render text with tokenizer.apply_chat_template(tokenize=False)"),
    "return_dict": (True, "input_ids, attention_mask and segment_ids are returned together"),
    "truncation": (False, "a cut row loses the markers of its messages; drop whole messages instead"),
    "chat_template": (None, "markers belong to one template; set tokenizer.chat_template and derive a Segmenter anew"),
    "return_assistant_tokens_mask": (False, "tokens of answers are among those with segment id -1"),
    "sanitize_control_tokens": (True, "special tokens typed in a message are always plain text"),
}


class Segmenter:
    """Finds the segments of a row from its token ids alone, with the markers of a chat template.

    Token ids are the canonical path: training, generation and serving give the same segments for the same ids.
    Under the policy "turns" every system, user and tool message, with its header and end markers (and the line
    break after them), is one segment; answers, their headers, the generation prompt and BOS are causal (-1).
    Under "prefix" all messages between two answers are one segment; under "causal" there are none. `restricted` leaves
    messages of some roles causal, or splits long segments.

    Raw ids are trusted: a special token id that was put there by hand, or by tokenizing a whole rendered text in
    which a user typed it, counts as a marker. `apply_chat_template` keeps typed markers apart.

    Make one with `from_tokenizer`, `from_markers` or `from_dict`.
    """

    def __init__(
        self,
        table: MarkerTable,
        policy: str = "turns",
        *,
        roles: Sequence[str] | None = None,
        special_texts: Sequence[str] = (),
        tokenizer: Any = None,
    ) -> None:
        if policy not in POLICIES:
            raise SegmentError(f"policy is {policy!r}; expected one of {', '.join(map(repr, POLICIES))}")
        self._table = table
        self._policy = policy
        self._roles = None if roles is None else tuple(roles)
        self._special_texts = tuple(special_texts)
        self._tokenizer = tokenizer

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, policy: str = "turns") -> "Segmenter":
        """Derive the markers from a tokenizer's own chat template, by rendering probe conversations.

        Args:
            tokenizer: a fast tokenizer of transformers with a chat template.
            policy: "turns", "prefix" or "causal".

        Raises:
            TemplateError: the markers cannot be read; the message says how to name them.
            SegmentError: an unknown policy.
        """
        from segattn.templates.derive import derive

        found = derive(tokenizer)
        return cls(found.table, policy, roles=found.roles, special_texts=found.special_texts, tokenizer=tokenizer)

    @classmethod
    def from_markers(
        cls,
        tokenizer: Any,
        bidirectional: Sequence[str],
        causal: Sequence[str],
        bos: str | None = None,
        policy: str = "turns",
    ) -> "Segmenter":
        """Name the markers by hand, for a template that cannot be read.

        Args:
            tokenizer: a fast tokenizer of transformers.
            bidirectional: texts that open a segment, e.g. ["<|user|>", "<|system|>"].
            causal: texts that begin what is not a segment, e.g. ["<|assistant|>"].
            bos: the token that begins a row; default the tokenizer's own, if no marker begins with it.
            policy: "turns", "prefix" or "causal".

        Raises:
            TemplateError: no marker, an empty one, or two that have the same token ids.
            SegmentError: an unknown policy.
        """
        from segattn.templates.named import named_markers

        table, special_texts = named_markers(tokenizer, bidirectional, causal, bos)
        return cls(table, policy, special_texts=special_texts, tokenizer=tokenizer)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], tokenizer: Any = None) -> "Segmenter":
        """Read what `to_dict` wrote.

        Args:
            data: the dict. `segment_ids` and `spans` need nothing else.
            tokenizer: the tokenizer it was made with; `apply_chat_template` needs it.

        Raises:
            SegmentError: another format, or malformed.
            TemplateError: the tokenizer gives the marker ids another text.
        """
        versions = (_VERSION, _VERSION_RESTRICTED)
        if not isinstance(data, Mapping) or data.get("version") not in versions or "policy" not in data:
            given = data.get("version") if isinstance(data, Mapping) else type(data).__name__
            raise SegmentError(
                f"a saved segmenter has version {given!r}; expected a dict with version {_VERSION} or "
                f"{_VERSION_RESTRICTED} from Segmenter.to_dict(). A newer segattn may have written it: upgrade, or "
                "derive it again"
            )
        table = MarkerTable.from_dict(data)
        if tokenizer is not None:
            for marker in table.markers:
                text = tokenizer.decode(list(marker.ids), clean_up_tokenization_spaces=False)
                if text != marker.text:
                    raise TemplateError(
                        f"the saved marker {marker.text!r} has the token ids {list(marker.ids)}, which are {text!r} "
                        f"for this {type(tokenizer).__name__}; expected the tokenizer that the segmenter was made with"
                    )
        roles = data.get("roles")
        return cls(table, data["policy"], roles=roles, special_texts=data.get("special_texts", ()), tokenizer=tokenizer)

    def to_dict(self) -> dict[str, Any]:
        """Return the segmenter as JSON types, without its tokenizer."""
        restricted = self._table.causal_roles or self._table.max_segment_length is not None
        return {
            "version": _VERSION_RESTRICTED if restricted else _VERSION,
            "policy": self._policy,
            **self._table.to_dict(),
            "roles": None if self._roles is None else list(self._roles),
            "special_texts": list(self._special_texts),
        }

    @property
    def policy(self) -> str:
        """Which messages are segments: "turns", "prefix" or "causal"."""
        return self._policy

    @property
    def tokenizer(self) -> Any:
        """The tokenizer it was made with; None for one that was read from a dict alone."""
        return self._tokenizer

    def with_policy(self, policy: str) -> "Segmenter":
        """Return a segmenter of the same markers and another policy."""
        return self._with(self._table, policy)

    def restricted(self, *, causal_roles: Sequence[str] = (), max_segment_length: int | None = None) -> "Segmenter":
        """Return a segmenter that leaves some messages causal, or splits long segments. Checkpoints record it.

        Args:
            causal_roles: messages of these roles are read causally, e.g. ("system",).
            max_segment_length: segments of more tokens are split, from their beginning, into pieces of this many; the
                last piece holds the rest. A token then sees its own piece whole, and everything before it.

        Raises:
            SegmentError: a length below 1, or a role whose messages the markers do not tell from others.
        """
        if max_segment_length is not None and (
            not isinstance(max_segment_length, int) or isinstance(max_segment_length, bool) or max_segment_length < 1
        ):
            raise SegmentError(f"max_segment_length is {max_segment_length!r}; expected a number of tokens, at least 1")
        told = self._table.told_roles()
        unknown = [role for role in causal_roles if role not in told]
        if isinstance(causal_roles, str) or unknown:
            raise SegmentError(
                f"causal_roles is {causal_roles!r}; expected a list of roles whose messages have markers of their own "
                f"in this template: {', '.join(told)}"
            )
        table = replace(self._table, causal_roles=tuple(causal_roles), max_segment_length=max_segment_length)
        return self._with(table, self._policy)

    def _with(self, table: MarkerTable, policy: str) -> "Segmenter":
        return Segmenter(table, policy, roles=self._roles, special_texts=self._special_texts, tokenizer=self._tokenizer)

    def spans(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Return the segments of one row of token ids (no padding) as (start, end) pairs, end exclusive, ascending.

        Takes plain ints; one pass, linear in the length.
        """
        return self._table.spans(ids, self._policy)

    def segment_ids(
        self, input_ids: Tensor | Sequence[int] | Sequence[Sequence[int]], attention_mask: Any = None
    ) -> Tensor:
        """Return the segment ids of token ids: the canonical path.

        Args:
            input_ids: integers, shape (length,) or (batch, length); a tensor or lists.
            attention_mask: optional, the same shape; 0 marks padding. Padded rows need it.

        Returns:
            int64, the shape of `input_ids`, on its device: segments numbered 0, 1, 2, ... in each row; -1 elsewhere.

        Raises:
            SegmentError: wrong type or shape, or padding amid the tokens of a row.
        """
        ids = _as_ids(input_ids, "input_ids")
        rows = ids[None] if ids.ndim == 1 else ids
        found = torch.full(rows.shape, CAUSAL, dtype=torch.int64)
        bounds = [(0, rows.shape[1])] * len(rows)
        if attention_mask is not None:
            mask = _as_ids(attention_mask, "attention_mask")
            if mask.shape != ids.shape:
                raise SegmentError(
                    f"attention_mask has shape {tuple(mask.shape)} and input_ids {tuple(ids.shape)}; expected the same"
                )
            bounds = [_real(row, index) for index, row in enumerate(mask.reshape(rows.shape).tolist())]
        for row, (tokens, (first, last)) in enumerate(zip(rows.tolist(), bounds, strict=True)):
            for number, (start, end) in enumerate(self.spans(tokens[first:last])):
                found[row, first + start : first + end] = number
        return found.reshape(ids.shape).to(ids.device)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        padding: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> "BatchEncoding":
        """Render and tokenize chats, with their segment ids: transformers' method and arguments.

        The ids are those of `tokenizer.apply_chat_template`, except where a message holds marker text (a special
        token of the template, or a plain-text marker such as "### Response:"): that text is then tokenized so
        that it is no marker. `segment_ids` always equals `self.segment_ids(input_ids, attention_mask)`.

        Args:
            conversation: a chat (list of messages), or a list of chats.
            tools: tools that the template may describe, as in transformers.
            documents: documents that the template may quote, as in transformers.
            add_generation_prompt: end with the header of an answer.
            continue_final_message: leave the last message open.
            padding: False, True or "longest", "max_length"; on the tokenizer's own side.
            max_length: for padding to "max_length". Longer chats stay whole.
            return_tensors: None (lists), "pt" or "np".
            tokenizer_kwargs: `padding_side` and `pad_to_multiple_of`.
            kwargs: further variables of the template, e.g. enable_thinking.

        Returns:
            A BatchEncoding of input_ids, attention_mask and segment_ids (-1 at padding): flat lists for one chat
            without `return_tensors`, otherwise (batch, length).

        Raises:
            TemplateError: no tokenizer, an argument with another value than segments allow, a message that the
                markers cannot place or whose text cannot be kept apart from them.
        """
        from transformers import BatchEncoding

        from segattn.templates.padding import pad_rows

        for name, (only, why) in _FIXED.items():
            if kwargs.pop(name, only) != only:
                raise TemplateError(f"apply_chat_template got another {name} than {only}; expected {only}: {why}")
        many = _is_batch(conversation)
        chats = [_messages(chat) for chat in (conversation if many else [conversation])]
        inputs = {name: value for name, value in (("tools", tools), ("documents", documents)) if value is not None}
        kwargs.update(add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message)
        rows = [self._conversations.ids(chat, inputs, kwargs) for chat in chats]
        ids, mask = pad_rows(self._tokenizer, rows, padding, max_length, tokenizer_kwargs or {}, return_tensors)
        numbers = [iter(self._numbers(row)) for row in rows]
        segments = [[next(own) if real else CAUSAL for real in row] for row, own in zip(mask, numbers, strict=True)]
        data: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "segment_ids": segments}
        if not many and return_tensors is None:
            data = {name: value[0] for name, value in data.items()}
        return BatchEncoding(data, tensor_type=return_tensors)

    def _numbers(self, ids: Sequence[int]) -> list[int]:
        """Segment ids of a row as a list."""
        numbers = [CAUSAL] * len(ids)
        for number, (start, end) in enumerate(self.spans(ids)):
            numbers[start:end] = [number] * (end - start)
        return numbers

    @cached_property
    def _conversations(self) -> ConversationTokenizer:
        if self._tokenizer is None:
            raise TemplateError(
                "this Segmenter has no tokenizer, it was read from a dict; apply_chat_template needs one: "
                "Segmenter.from_dict(data, tokenizer=tokenizer). segment_ids(input_ids) works without"
            )
        return ConversationTokenizer(self._tokenizer, self._table, self._special_texts, self._roles)

    def describe(self) -> str:
        """Return the policy and the markers, one to a line."""
        lines = [f"policy {self._policy}"]
        for marker in self._table.markers:
            lines.append(f"{marker.kind:8} {marker.role:10} {marker.text!r} {list(marker.ids)}")
        if self._table.leading_segment:
            lines.append("segment  system     text before the first marker")
        if self._table.causal_roles:
            lines.append(f"read causally: {', '.join(self._table.causal_roles)}")
        if self._table.max_segment_length is not None:
            lines.append(f"segments are split after {self._table.max_segment_length} tokens")
        return "\n".join(lines)

    def __repr__(self) -> str:
        opening = [m.text for m in self._table.markers if m.kind == "segment"]
        ending = [m.text for m in self._table.markers if m.kind in ("causal", "close")]
        return f"Segmenter(policy={self._policy!r}, segments begin at {opening}, end at {ending})"


def _as_ids(values: Any, name: str) -> Tensor:
    """Integers of one or two axes as a tensor."""
    if not isinstance(values, Tensor):
        try:
            values = torch.as_tensor(values, dtype=None if len(values) else torch.int64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise SegmentError(
                f"{name} is a {type(values).__name__} that makes no tensor ({error}); expected integers of shape "
                "(length,) or (batch, length), rows of one length (pad them)"
            ) from error
    if values.is_floating_point() or values.is_complex() or values.ndim not in (1, 2):
        raise SegmentError(
            f"{name} has dtype {values.dtype} and shape {tuple(values.shape)}; expected integers of shape (length,) or "
            "(batch, length)"
        )
    return values


def _real(mask: Sequence[int], row: int) -> tuple[int, int]:
    """The first and last + 1 real token of a row."""
    real = [position for position, value in enumerate(mask) if value]
    if not real:
        return (0, 0)
    if real[-1] + 1 - real[0] != len(real):
        raise SegmentError(
            f"attention_mask of row {row} has zeros between its tokens {real[0]} and {real[-1]}; expected padding at "
            "the ends only, because a segment is one contiguous run"
        )
    return (real[0], real[-1] + 1)


def _is_batch(conversation: Any) -> bool:
    if isinstance(conversation, str | Mapping) or not isinstance(conversation, Sequence) or not conversation:
        given = "an empty one" if isinstance(conversation, Sequence) else f"a {type(conversation).__name__}"
        raise TemplateError(
            f"the conversation is {given if not isinstance(conversation, str) else 'a str'}; expected a list of "
            "messages, e.g. [{'role': 'user', 'content': 'Hello'}], or a list of such lists"
        )
    first = conversation[0]
    return isinstance(first, list | tuple) or hasattr(first, "messages")


def _messages(chat: Any) -> list[dict[str, Any]]:
    return list(getattr(chat, "messages", chat))
