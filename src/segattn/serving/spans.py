"""The segments of a request: the one function that front end, scheduler and model runner all call.

They run in different processes and must agree on every token, so the front end writes the spans that it found into the
request's `SamplingParams.extra_args`, which vLLM sends to all of them, and the others read them there.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from segattn.errors import SegmentError
from segattn.segments import spans_to_segment_ids

if TYPE_CHECKING:
    from segattn.templates import Segmenter

__all__ = ["OVERRIDE", "Spans", "spans_of"]

OVERRIDE = "segment_attention"
"""The entry of `extra_args` (`vllm_xargs` over HTTP) by which a request sets its own segments."""

Spans = tuple[tuple[int, int], ...]

_EXPECTED = (
    f'expected "{OVERRIDE}" to be "segments" (as the checkpoint was tuned; the default), "causal", or a flat list of '
    "token positions [start, end, start, end, ...], ends exclusive, ascending and disjoint"
)


def spans_of(
    prompt_token_ids: Sequence[int], extra_args: Mapping[str, Any] | None, segmenter: "Segmenter | None"
) -> Spans:
    """Return the segments of a prompt as (start, end) pairs, end exclusive, ascending; none for a causal request.

    Args:
        prompt_token_ids: the whole prompt, as the engine received it.
        extra_args: of the request's sampling parameters.
        segmenter: of the checkpoint or adapter that answers; None for one that was not tuned with segments, whose
            requests are causal unless they give spans.

    Raises:
        SegmentError: a malformed override.
    """
    given = (extra_args or {}).get(OVERRIDE, "segments")
    _refuse_misspelt(extra_args or {})
    if isinstance(given, str):
        if given == "causal" or (given == "segments" and segmenter is None and OVERRIDE not in (extra_args or {})):
            return ()
        if given == "segments" and segmenter is not None:
            return tuple(segmenter.spans(prompt_token_ids))
        if given == "segments":
            raise SegmentError(
                f'"{OVERRIDE}" is "segments", but the model that this request names was not tuned with segments; leave '
                "it out, name the adapter that was, or give the spans as a list of positions"
            )
    return _explicit(given, len(prompt_token_ids))


def _refuse_misspelt(extra_args: Mapping[str, Any]) -> None:
    """A misspelt override must not run the request otherwise than it asks."""
    for name in extra_args:
        if name != OVERRIDE and name.lower().replace("-", "_").startswith("segment"):
            raise SegmentError(f"extra argument {name!r} is unknown; the one for segments is called {OVERRIDE!r}")


def _explicit(given: Any, length: int) -> Spans:
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise SegmentError(f"segments override {given!r:.100}; {_EXPECTED}")
    wrong = [value for value in given if type(value) is not int]
    if wrong or len(given) % 2:
        found = f"the entry {wrong[0]!r:.100}" if wrong else f"{len(given)} numbers, an odd count"
        raise SegmentError(f"segments override with {found}; {_EXPECTED}")
    pairs = tuple(zip(given[::2], given[1::2], strict=True))
    spans_to_segment_ids(pairs, length)
    return pairs
