"""Find headers in rendered probes, and the token ids that they have in all of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from segattn.templates.markers import MarkerTable
from segattn.templates.probes import Probe, Rendering

__all__ = ["header_ids", "misplaced", "occurrences", "reduce_groups"]

Ids = tuple[int, ...]


def header_ids(rendering: Rendering, position: int, end: int, added: Mapping[int, str]) -> Ids:
    """Return the ids of the header that begins at token `position`.

    It is cut at its first line break, after its next special token (`added`), and at character `end`.
    """
    taken: list[int] = []
    for index in range(position, len(rendering.ids)):
        start, stop = rendering.offsets[index]
        token = rendering.ids[index]
        if stop > end or (taken and "\n" in rendering.text[start:stop]):
            break
        taken.append(token)
        if len(taken) > 1 and token in added:
            break
    return tuple(taken)


def occurrences(probes: Sequence[Probe], role: str, text: str) -> Iterator[tuple[Rendering, int, int]]:
    """Find `text` before messages of a role: (rendering, its character, where the message's word begins)."""
    for probe in probes:
        for index, (start, _, found) in enumerate(probe.words):
            at = probe.rendering.text.rfind(text, probe.before(index)[0], start)
            if found == role and at >= 0:
                yield probe.rendering, at, start
        if role == "assistant" and text in probe.tail:
            rendering = probe.rendering
            yield rendering, rendering.text.rfind(text), len(rendering.text)


def reduce_groups(sequences: Iterable[Ids], key: int, reduce: Callable[[Iterable[Ids]], Ids]) -> list[Ids]:
    """Group ids by their first (key 0) or last (key -1) and reduce each group to what its members share."""
    groups: dict[int, dict[Ids, None]] = {}
    for ids in sequences:
        if ids:
            groups.setdefault(ids[key], {})[ids] = None
    return [reduce(group) for group in groups.values()]


def misplaced(table: MarkerTable, probe: Probe) -> list[str]:
    """Return the words on the wrong side: of prompts outside every segment, of answers inside one."""
    rendering = probe.rendering
    inside = table.inside(rendering.ids)
    return [
        rendering.text[start:end]
        for start, end, role in probe.words
        if any(inside[i] == (role == "assistant") for i in rendering.tokens_over(start, end))
    ]
