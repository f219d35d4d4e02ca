"""Which mask a checkpoint runs under: the one that it was tuned with, unless its user says otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from segattn.errors import SegmentError

if TYPE_CHECKING:
    from segattn.templates import Segmenter

__all__ = ["Attention", "AttentionChoice", "check_attention", "choose_attention", "tuned_with_segments"]

Attention = Literal["auto", "segments", "causal"]


@dataclass(frozen=True)
class AttentionChoice:
    """How a checkpoint runs.

    Attributes:
        attention: the mask.
        segmenter: finds the segments; of a causal run the recorded one, None where nothing is recorded.
        recorded: whether the segmenter is the checkpoint's own, as it was tuned.
        note: a line for the user where the mask is not the one that the checkpoint was tuned with, or nothing is known.
    """

    attention: Literal["segments", "causal"]
    segmenter: "Segmenter | None"
    recorded: bool
    note: str | None = None


def check_attention(wanted: str) -> None:
    """Refuse what is no way of attending.

    Raises:
        SegmentError: anything but "auto", "segments" and "causal".
    """
    if wanted not in get_args(Attention):
        raise SegmentError(f"attention is {wanted!r}; expected one of {', '.join(get_args(Attention))}")


def tuned_with_segments(entry: Mapping[str, Any] | None) -> bool:
    """Whether a checkpoint with this entry (see `read_segmentation`) was tuned with segments."""
    return entry is not None and (entry["segmenter"] is None or entry["segmenter"]["policy"] != "causal")


def choose_attention(name: str, wanted: Attention, entry: Mapping[str, Any] | None, tokenizer: Any) -> AttentionChoice:
    """Settle how a checkpoint runs.

    Args:
        name: of the checkpoint, for messages.
        wanted: "auto" takes segments where the checkpoint was tuned with them, and causal otherwise.
        entry: what the checkpoint records, see `read_segmentation`.
        tokenizer: the checkpoint's; segments that nothing is recorded of are those of its chat template.

    Raises:
        SegmentError: an unknown `wanted`; segments of a checkpoint whose segment ids were always given.
        TemplateError: no markers in the chat template, or a tokenizer that the recorded segmenter was not made with.
    """
    from segattn.templates import Segmenter

    check_attention(wanted)
    if entry is None:
        if wanted != "segments":
            note = f"{name} records no segmentation: it runs causally (attention segments overrides)"
            return AttentionChoice("causal", None, False, note)
        note = f"Warning: {name} was never tuned with segments; expect worse answers under them"
        return AttentionChoice("segments", Segmenter.from_tokenizer(tokenizer), False, note)
    segmenter = None if entry["segmenter"] is None else Segmenter.from_dict(entry["segmenter"], tokenizer=tokenizer)
    if not tuned_with_segments(entry):
        assert segmenter is not None
        if wanted != "segments":
            return AttentionChoice("causal", segmenter, True)
        note = f"Warning: {name} was tuned causally; it runs under segments because you asked for it"
        return AttentionChoice("segments", segmenter.with_policy("turns"), False, note)
    if wanted == "causal":
        note = f"Warning: {name} was tuned with segments; it runs causally because you asked for it"
        return AttentionChoice("causal", segmenter, True, note)
    if segmenter is None:
        raise SegmentError(
            f"{name} was saved without a segmenter, so a chat cannot be segmented for it; load it with "
            "segattn.from_pretrained, and save it again after segattn.enable(model, segmenter)"
        )
    return AttentionChoice("segments", segmenter, True)
