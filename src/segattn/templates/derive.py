"""Turn what a chat template writes into markers of token ids, by rendering probe conversations."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from segattn.errors import TemplateError
from segattn.templates.affixes import common_prefix, common_suffix
from segattn.templates.layout import HOW_TO_NAME_MARKERS, Layout, read_layout
from segattn.templates.markers import Marker, MarkerTable, check_distinct
from segattn.templates.occurrences import header_ids, misplaced, occurrences, reduce_groups
from segattn.templates.probes import ODD_CONTENTS, TOOL_NAMES, Message, Probe, Prober, Rendering, call, chat, word

__all__ = ["PROMPT_ROLES", "Derived", "derive"]

PROMPT_ROLES = ("system", "developer", "user", "tool")
"""Roles whose messages are segments, where the template takes them."""


@dataclass(frozen=True)
class Derived:
    """What a template's markers are, the roles that they can place, and the special tokens that it writes."""

    table: MarkerTable
    roles: tuple[str, ...]
    special_texts: tuple[str, ...]


def derive(tokenizer: Any) -> Derived:
    """Read the markers of a tokenizer's own chat template.

    Raises:
        TemplateError: there is no template, or its messages cannot be told apart by token ids.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TemplateError(
            f"{type(tokenizer).__name__} has no chat template to read markers from; set tokenizer.chat_template. "
            f"{HOW_TO_NAME_MARKERS}"
        )
    reader = _Reader(Prober(tokenizer))
    table = reader.table()
    check_distinct(table.markers)
    roles = ("assistant", *(role for role in PROMPT_ROLES if reader.places(table, role)))
    if "user" not in roles:
        raise TemplateError(
            "the markers read from the chat template do not separate user from assistant messages: "
            f"{[m.text for m in table.markers]}. {HOW_TO_NAME_MARKERS}"
        )
    return Derived(table, roles, reader.special_texts(table))


class _Reader:
    """The probes of one template, and the markers found in them."""

    def __init__(self, prober: Prober) -> None:
        self.prober = prober
        self.layout: Layout = read_layout(prober)
        self.plain = self._probes([("", "")])
        self.odd = self._probes(ODD_CONTENTS)
        self.tool_probes = self._tool_probes()
        self.shared = self._shared_head()

    def _probes(self, odds: Iterable[tuple[str, str]]) -> list[Probe]:
        opening = self.layout.opening
        shapes: list[tuple[str, ...]] = [("user",), ("user", "assistant"), ("user", "assistant", "user", "assistant")]
        shapes = [(*opening, *shape) for shape in shapes]
        for role in ("system", "developer"):
            shapes += [(role, "user"), (role, "user", "assistant", "user")]
        found = []
        for odd in odds:
            for shape in shapes:
                probe = self.prober.probe(chat(*shape, odd=odd), generation=shape[-1] == "user")
                found += [probe] if probe is not None else []
        return found

    def _tool_probes(self) -> list[Probe]:
        """Conversations with a tool message, for every way of writing the call that the template accepts."""
        found = []
        for variant in (0, 1):
            calls = [call(variant), call(variant, as_text=True), call(variant, content=None), call(variant, True, None)]
            answered: list[Message] = [*calls, {"role": "assistant", "content": word(20)}]
            for calling in answered:
                start = [*chat(*self.layout.opening, "user"), calling]
                result: Message = {"role": "tool", "content": word(21), "name": TOOL_NAMES[variant]}
                result["tool_call_id"] = f"abcdefgh{variant}"
                for end in ([result], [result, {"role": "assistant", "content": word(22)}]):
                    probe = self.prober.probe([*start, *end])
                    found += [probe] if probe is not None else []
        return found

    def _shared_head(self) -> int | None:
        """The special token that begins the headers of user and assistant messages alike, e.g. `<|im_start|>`."""
        if not self.layout.assistant:
            return None
        encode = self.prober.encode
        heads = {encode(text).ids[:1] for text in (self.layout.user, self.layout.assistant)}
        head = next(iter(heads))
        return head[0] if len(heads) == 1 and head and head[0] in self.prober.added else None

    def table(self) -> MarkerTable:
        """Collect the markers of all roles."""
        headers = list(self._own_headers()) if self.shared is None else self._shared_headers(self.shared)
        if self.layout.closing:
            headers += self._closings("user", [*self.plain, *self.odd], self.layout.closing)
        else:
            headers += self._tool_closings()
        markers = list(dict.fromkeys(headers))
        return MarkerTable((*markers, *self._bos(markers)), self._leading(markers))

    # Templates whose headers all begin with one special token, then name the role.

    def _shared_headers(self, head: int) -> list[Marker]:
        by_place: dict[tuple[str, int], set[tuple[int, ...]]] = {}
        for probe in [*self.plain, *self.odd, *self.tool_probes]:
            for index in range(len(probe.words) + 1):
                last = index == len(probe.words)
                role = "assistant" if last else probe.words[index][2]
                start, end = (probe.words[-1][1], len(probe.rendering.text)) if last else probe.before(index)
                for distance, ids in enumerate(self._heads_in(probe.rendering, head, start, end)):
                    by_place.setdefault((role, distance), set()).add(ids)
        assistant = common_prefix(by_place[("assistant", 0)])
        found = [Marker("causal", "assistant", assistant, self._text(assistant))]
        for (role, distance), sequences in by_place.items():
            prompts = {ids for ids in sequences if ids[: len(assistant)] != assistant}
            common = common_prefix(prompts) if prompts else ()
            for ids in [common] if len(common) > 1 else sorted(prompts):
                # What stands further ahead of a message is not its own header but one that the template adds.
                found.append(Marker("segment", role if distance == 0 else "system", ids, self._text(ids)))
        return _first_of_each(found)

    def _heads_in(self, rendering: Rendering, head: int, start: int, end: int) -> list[tuple[int, ...]]:
        """Headers that begin between two characters, the last one first."""
        first, beyond = rendering.token_at(start), end
        positions = [
            i
            for i in range(first, len(rendering.ids))
            if rendering.ids[i] == head and start <= rendering.offsets[i][0] < beyond
        ]
        return [self._header(rendering, i, end) for i in reversed(positions)]

    def _header(self, rendering: Rendering, position: int, end: int) -> tuple[int, ...]:
        """A header's ids: up to a line break, or up to and with the next special token, or up to the content."""
        return header_ids(rendering, position, end, self.prober.added)

    # Templates with one marker for each role.

    def _own_headers(self) -> Iterator[Marker]:
        layout, everything = self.layout, [*self.plain, *self.odd]
        yield from self._headers("segment", "user", everything, layout.user)
        if layout.assistant:
            yield from self._headers("causal", "assistant", everything, layout.assistant)
        for role in ("system", "developer"):
            text = self._system_header(role)
            if text:
                yield from self._headers("segment", role, everything, text)
        for text in self._tool_headers():
            yield from self._headers("segment", "tool", self.tool_probes, text)

    def _headers(self, kind: str, role: str, probes: Sequence[Probe], text: str) -> list[Marker]:
        """Markers for the header `text`: one for each way in which it is tokenized."""
        first_line = text.strip().split("\n", 1)[0]
        sequences = []
        for rendering, character, end in occurrences(probes, role, first_line):
            stop = min(end, character + len(text))
            ids = header_ids(rendering, rendering.token_at(character), stop, self.prober.added)
            if ids and ids[0] in self.prober.added and self._only_in_headers(ids[0], role):
                ids = ids[:1]
            sequences.append(ids)
        return [Marker(kind, role, ids, self._text(ids)) for ids in reduce_groups(sequences, 0, common_prefix)]

    def _only_in_headers(self, token: int, role: str) -> bool:
        """Whether a special token stands nowhere but before the messages of a role."""
        probe = self.plain[-1] if role in PROMPT_ROLES[:2] else self.plain[2]
        if role == "tool":
            return True
        return Counter(probe.rendering.ids)[token] == sum(1 for _, _, r in probe.words if r == role)

    def _system_header(self, role: str) -> str:
        """The text before a first system message; "" if there is none, or it is a user header (a merged turn)."""
        for probe in self.plain:
            if probe.words[0][2] == role:
                text = self._after_bos(probe.between(0))
                return "" if self.layout.user.strip() in text else text
        return ""

    def _tool_headers(self) -> list[str]:
        found = []
        for probe in self.tool_probes:
            if probe.words[-1][2] != "tool":
                continue
            before = self.prober.probe(probe.messages[:-1])
            text = probe.between(len(probe.words) - 1)
            if before is None or not text.startswith(before.tail):
                continue
            header = text[len(before.tail) :].strip()
            if header and self.layout.user.strip() not in header:
                found.append(header)
        # The names of tools and calls vary: keep what all headers begin with.
        common = common_prefix(found).strip() if found else ""
        return [common] if common else []

    def _closings(self, role: str, probes: Sequence[Probe], text: str) -> list[Marker]:
        """Markers for the text that ends the prompt."""
        sequences = []
        for probe in probes:
            for index in range(1, len(probe.words)):
                start, end = probe.before(index)
                at = probe.rendering.text.rfind(text, start, end)
                if at < 0 or probe.words[index - 1][2] != role:
                    continue
                first = probe.rendering.token_at(at)
                ids = tuple(probe.rendering.tokens_until(first, at + len(text)))
                sequences.append(ids[-1:] if ids and ids[-1] in self.prober.added else ids)
        return [Marker("close", role, ids, self._text(ids)) for ids in reduce_groups(sequences, -1, common_suffix)]

    def _tool_closings(self) -> list[Marker]:
        """Where an answer to a tool message has no header, what ends the tool message."""
        texts = []
        for probe in self.tool_probes:
            for index in range(1, len(probe.words)):
                if probe.words[index - 1][2] == "tool" and probe.words[index][2] == "assistant":
                    texts.append(probe.between(index).strip())
        if not texts or any(self.layout.assistant.strip() in text for text in texts):
            return []
        common = common_suffix(texts).strip()
        return self._closings("tool", self.tool_probes, common) if common else []

    # What stands before the first header.

    def _bos(self, markers: Sequence[Marker]) -> list[Marker]:
        """Special tokens that begin every row and belong to no header or message end."""
        used = {token for marker in markers for token in marker.ids}
        ids = self.plain[0].rendering.ids
        leading = []
        for token in ids:
            if token in used or token not in self.prober.added:
                break
            leading.append(token)
        bos = self.prober.tokenizer.bos_token_id
        candidates = [*leading, *([int(bos)] if bos is not None else [])]
        probe = next(p for p in self.plain if len(p.words) > 1 and p.words[-2][2] == "user")
        first, last = (probe.rendering.token_at(probe.words[i][0]) for i in (-2, -1))
        inside = set(probe.rendering.ids[first:last]) | used
        return [Marker("bos", "bos", (t,), self._text((t,))) for t in dict.fromkeys(candidates) if t not in inside]

    def _leading(self, markers: Sequence[Marker]) -> bool:
        """Whether the template writes a system prompt, the caller's or its own, without a header before it."""
        openers = MarkerTable(tuple(m for m in markers if m.kind == "segment"))
        for probe in self.plain:
            rendering = probe.rendering
            events = openers.events(rendering.ids)
            start = rendering.offsets[events[0].start][0] if events else len(rendering.text)
            if self._after_bos(rendering.text[:start]).strip():
                return True
        return False

    def _after_bos(self, text: str) -> str:
        """`text` without the special tokens that it begins with, as far as no header does."""
        text = text.lstrip()
        if text.startswith((self.layout.user, self.layout.assistant or self.layout.user)):
            return text
        for token in self._row_start():
            text = text.removeprefix(token).lstrip()
        return text

    def _row_start(self) -> list[str]:
        """Special tokens that begin every conversation, before the first header or text."""
        shared = common_prefix(self._special_run(probe.rendering) for probe in self.plain)
        return [self.prober.added[token] for token in shared]

    def _special_run(self, rendering: Rendering) -> tuple[int, ...]:
        run: list[int] = []
        heads = {self.prober.encode(t).ids[0] for t in (self.layout.user, self.layout.assistant) if t}
        for token in rendering.ids:
            if token not in self.prober.added or token in heads:
                break
            run.append(token)
        return tuple(run)

    def special_texts(self, table: MarkerTable) -> tuple[str, ...]:
        """Return the special tokens that the template writes around messages; typed in a message they are plain text.

        Ordinary added tokens that mark parts of a message, such as `<think>`, are left to the messages.
        """
        tokenizer, added = self.prober.tokenizer, self.prober.added
        control = {token for marker in table.markers for token in marker.ids} | set(tokenizer.all_special_ids)
        control |= {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
        written = {token for probe in [*self.plain, *self.tool_probes] for token in probe.rendering.ids}
        written |= {token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None}
        return tuple(added[token] for token in sorted(written & control) if token in added)

    def places(self, table: MarkerTable, role: str) -> bool:
        """Whether the markers place every message of the probes with this role, and there is one."""
        probes = self.tool_probes if role == "tool" else self.plain
        holding = [probe for probe in probes if any(found == role for _, _, found in probe.words)]
        return bool(holding) and not any(misplaced(table, probe) for probe in holding)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.prober.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _first_of_each(markers: Sequence[Marker]) -> list[Marker]:
    """Keep one marker for each kind and ids."""
    unique: dict[tuple[str, tuple[int, ...]], Marker] = {}
    for marker in markers:
        unique.setdefault((marker.kind, marker.ids), marker)
    return list(unique.values())
