"""What opens and closes a segment in a row of token ids. Needs no tokenizer and no tensors.

A template writes a fixed header before every message. A header that opens a user, system or tool message is a
marker of kind "segment", the header of an assistant message one of kind "causal". A template that gives the
assistant no header (Llama 2, Mistral) ends the prompt with a marker of kind "close", which is the last piece of
the segment. Everything between two markers belongs to the first of them: end markers such as `<|im_end|>`, and
the line break after them, are part of the message that they end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from segattn.errors import SegmentError, TemplateError

__all__ = ["KINDS", "POLICIES", "Event", "Marker", "MarkerTable", "check_distinct"]

POLICIES = ("turns", "prefix", "causal")
KINDS = ("segment", "causal", "close", "bos")


@dataclass(frozen=True)
class Marker:
    """Token ids that open or close a message.

    `kind` is one of `KINDS`; `role` names the messages that it belongs to; `text` is what the ids stand for.
    """

    kind: str
    role: str
    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Event:
    """A marker found at positions `start` to `end` (exclusive) of a row."""

    start: int
    end: int
    marker: Marker


@dataclass(frozen=True)
class MarkerTable:
    """All markers of a template.

    Args:
        markers: the markers; where several match at one position, the longest wins.
        leading_segment: text between the start of the row (or a BOS) and the first marker is a segment: the
            template writes its system prompt there without a header.
        causal_roles: messages of these roles are read causally; what is a message does not change.
        max_segment_length: longer segments are split, from their beginning, into pieces of this many tokens.
    """

    markers: tuple[Marker, ...]
    leading_segment: bool = False
    causal_roles: tuple[str, ...] = ()
    max_segment_length: int | None = None
    _by_first: dict[int, list[Marker]] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        by_first: dict[int, list[Marker]] = {}
        for marker in sorted(self.markers, key=lambda marker: -len(marker.ids)):
            by_first.setdefault(marker.ids[0], []).append(marker)
        object.__setattr__(self, "_by_first", by_first)

    def events(self, ids: Sequence[int]) -> list[Event]:
        """Find every marker of a row, left to right, without overlaps; one pass over the ids."""
        by_first, found, free = self._by_first, [], 0
        for position, token in enumerate(ids):
            if token not in by_first or position < free:
                continue
            for marker in by_first[token]:
                free = position + len(marker.ids)
                if tuple(ids[position:free]) == marker.ids:
                    found.append(Event(position, free, marker))
                    break
            else:
                free = position
        return found

    def spans(self, ids: Sequence[int], policy: str) -> list[tuple[int, int]]:
        """Return the segments of a row as (start, end) pairs, end exclusive, in ascending order."""
        if policy == "causal":
            return []
        found = self._walk(ids, merge=policy == "prefix", causal_roles=self.causal_roles)
        length = self.max_segment_length
        if length is None:
            return found
        return [(at, min(at + length, end)) for start, end in found for at in range(start, end, length)]

    def inside(self, ids: Sequence[int]) -> list[bool]:
        """Return for each token of a row whether it lies in a message that is no answer, read causally or not."""
        inside = [False] * len(ids)
        for start, end in self._walk(ids):
            inside[start:end] = [True] * (end - start)
        return inside

    def _walk(
        self, ids: Sequence[int], *, merge: bool = False, causal_roles: Sequence[str] = ()
    ) -> list[tuple[int, int]]:
        walk = _Walk(merge, self.leading_segment and "system" not in causal_roles, causal_roles)
        for event in self.events(ids):
            walk.step(event)
        return walk.finish(len(ids))

    def told_roles(self) -> tuple[str, ...]:
        """The roles whose messages can be read causally while those of other roles stay segments."""
        roles = [marker.role for marker in self.markers if marker.kind == "segment"]
        return tuple(dict.fromkeys(["system", *roles] if self.leading_segment else roles))

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON types."""
        return {
            "markers": [{"kind": m.kind, "role": m.role, "ids": list(m.ids), "text": m.text} for m in self.markers],
            "leading_segment": self.leading_segment,
            **({"causal_roles": list(self.causal_roles)} if self.causal_roles else {}),
            **({} if self.max_segment_length is None else {"max_segment_length": self.max_segment_length}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "MarkerTable":
        """Read what `to_dict` wrote.

        Raises:
            SegmentError: an entry is missing or malformed.
        """
        try:
            markers = tuple(
                Marker(str(m["kind"]), str(m["role"]), tuple(int(i) for i in m["ids"]), str(m["text"]))
                for m in data["markers"]
            )
            leading = bool(data["leading_segment"])
            causal_roles = tuple(str(role) for role in data.get("causal_roles", ()))
            longest = data.get("max_segment_length")
            longest = None if longest is None else int(longest)
        except (KeyError, TypeError, ValueError) as error:
            raise SegmentError(
                f"a saved segmenter holds malformed markers ({type(error).__name__}: {error}); expected what "
                "Segmenter.to_dict() writes. Derive the segmenter again with Segmenter.from_tokenizer(tokenizer)"
            ) from error
        for marker in markers:
            if marker.kind not in KINDS or not marker.ids:
                raise SegmentError(
                    f"a saved segmenter holds the marker {marker}; expected a kind from {', '.join(KINDS)} and at "
                    "least one token id. Derive the segmenter again with Segmenter.from_tokenizer(tokenizer)"
                )
        return cls(markers, leading, causal_roles, longest)


def check_distinct(markers: Sequence[Marker]) -> None:
    """Refuse markers that cannot be told apart: the same token ids with different meanings.

    Raises:
        TemplateError: names both markers.
    """
    seen: dict[tuple[int, ...], Marker] = {}
    for marker in markers:
        other = seen.setdefault(marker.ids, marker)
        if other.kind != marker.kind:
            raise TemplateError(
                f"the {other.role} marker {other.text!r} ({other.kind}) and the {marker.role} marker {marker.text!r} "
                f"({marker.kind}) have the same token ids {list(marker.ids)}; expected markers that token ids tell "
                "apart. Name distinguishing ones with Segmenter.from_markers"
            )


class _Walk:
    """The state of one pass over the markers of a row: which segment is open, and where it began."""

    def __init__(self, merge: bool, leading_segment: bool, causal_roles: Sequence[str]) -> None:
        self.merge = merge
        self.leading_segment = leading_segment
        self.causal_roles = causal_roles
        self.spans: list[tuple[int, int]] = []
        self.open_at: int | None = None
        self.last: Event | None = None
        # Where text without a header begins. It counts only once a marker follows: a row that holds no
        # marker at all is plain text, not a system prompt.
        self.headless_at: int | None = 0 if leading_segment else None

    def step(self, event: Event) -> None:
        kind = event.marker.kind
        if kind == "segment" and event.marker.role in self.causal_roles:
            kind = "causal"
        if kind == "bos":
            self._end(event.start)
            self.headless_at = event.end if self.leading_segment else None
        else:
            if self.headless_at is not None:
                self.open_at = self.headless_at if self.headless_at < event.start else None
                self.headless_at = None
            if kind == "segment":
                self._open(event)
            else:
                self._end(event.end if kind == "close" else event.start)
        self.last = event

    def finish(self, length: int) -> list[tuple[int, int]]:
        self._end(length)
        return self.spans

    def _open(self, event: Event) -> None:
        adjacent = self.last is not None and self.last.end == event.start
        if self.open_at is None:
            self.open_at = event.start
            if self.merge and adjacent and self.last is not None and self.last.marker.kind == "close" and self.spans:
                self.open_at = self.spans.pop()[0]
        elif not self.merge and not (adjacent and _one_header(self.last, event)):
            self._end(event.start)
            self.open_at = event.start

    def _end(self, position: int) -> None:
        if self.open_at is not None and self.open_at < position:
            self.spans.append((self.open_at, position))
        self.open_at = None


def _one_header(before: Event | None, event: Event) -> bool:
    """Whether two markers that touch are two pieces of one header, e.g. "tool outputs begin", "tool output begin"."""
    return before is not None and before.marker.role == event.marker.role and before.marker.ids != event.marker.ids
