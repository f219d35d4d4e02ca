"""Markers that a caller names by their text."""

from collections.abc import Sequence
from typing import Any

from segattn.errors import TemplateError
from segattn.templates.affixes import common_prefix
from segattn.templates.markers import Marker, MarkerTable, check_distinct
from segattn.templates.occurrences import reduce_groups
from segattn.templates.probes import Prober

__all__ = ["named_markers"]

# Text around a marker: its first and last tokens may differ with it.
_BEFORE = ("", "\n", " ", "x", "x\n", "x ", ".", ".\n", "\n\n")
_AFTER = ("", "\n", "\n\n", " ", "x", " x", "\nx", "\n\nx", "1", "(", ".")


def named_markers(
    tokenizer: Any, bidirectional: Sequence[str], causal: Sequence[str], bos: str | None
) -> tuple[MarkerTable, tuple[str, ...]]:
    """Tokenize marker texts in varying surroundings.

    Returns:
        The markers, and the special tokens among their texts (and BOS and EOS), which are plain text in messages.

    Raises:
        TemplateError: a text that is empty or has no tokens of its own, none at all, or two with the same ids.
    """
    for name, texts in (("bidirectional", bidirectional), ("causal", causal)):
        if isinstance(texts, str) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise TemplateError(f"{name} is {texts!r}; expected a list of marker texts, e.g. ['<|user|>'], none empty")
    prober = Prober(tokenizer)
    markers = [m for text in bidirectional for m in _markers(prober, "segment", text.strip())]
    markers += [m for text in causal for m in _markers(prober, "causal", text.strip())]
    check_distinct(markers)
    heads = {marker.ids[0] for marker in markers}
    bos_id = tokenizer.bos_token_id if bos is None else tokenizer.convert_tokens_to_ids(bos)
    if bos is not None and (bos_id is None or bos_id == tokenizer.unk_token_id):
        raise TemplateError(f"bos is {bos!r}, which is no token of this tokenizer; expected one, or None for its own")
    if bos_id is not None and bos_id not in heads:
        markers.append(Marker("bos", "bos", (int(bos_id),), str(prober.added.get(int(bos_id), bos))))
    used = {token for marker in markers for token in marker.ids} | {tokenizer.eos_token_id}
    special = tuple(prober.added[token] for token in sorted(t for t in used if t in prober.added))
    return MarkerTable(tuple(dict.fromkeys(markers))), special


def _markers(prober: Prober, kind: str, text: str) -> list[Marker]:
    """One marker for each way in which a text is tokenized, cut to what does not change with what follows."""
    sequences = []
    for before in _BEFORE:
        for after in _AFTER:
            rendering = prober.encode(f"{before}{text}{after}")
            first = rendering.token_at(len(before))
            sequences.append(tuple(rendering.tokens_until(first, len(before) + len(text))))
    found = []
    for ids in reduce_groups(sequences, 0, common_prefix):
        decoded = prober.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        found.append(Marker(kind, text, ids, str(decoded)))
    if not found:
        raise TemplateError(
            f"the marker {text!r} always merges with the text around it; expected a marker with tokens of its own"
        )
    return found
