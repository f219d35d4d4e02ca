"""Tokenized pairs of answers with their segments, cut or left out where they are longer than max_length."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segattn.data import DataError, Encoder, Sample
from segattn.training.cutting import TooLong, cut_chat
from segattn.training.preferences.tokens import prompt_segments

if TYPE_CHECKING:
    from segattn.templates import Segmenter

__all__ = ["LEFT_OUT", "PairSegments"]

LEFT_OUT = -1
"""The value of `removed_tokens` of a pair that is left out."""


@dataclass(frozen=True)
class PairSegments:
    """Adds prompt_segment_ids and removed_tokens to a row of prompt_ids, chosen_ids and rejected_ids.

    Args:
        segmenter: tells the segments from the tokens.
        max_length: the most tokens of prompt and longer answer; None for any number.
        too_long: what happens to longer pairs; see `segattn.training.cutting`. Answers are never cut.
    """

    segmenter: "Segmenter"
    max_length: int | None
    too_long: TooLong

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the columns to set.

        Raises:
            DataError: a completion with segments of its own, or a pair over max_length where nothing may be cut.
        """
        prompt, answers = list(row["prompt_ids"]), [row["chosen_ids"], row["rejected_ids"]]
        length = len(prompt) + max(map(len, answers))
        removed = 0
        if self.max_length is not None and length > self.max_length:
            if self.too_long == "error":
                raise DataError(
                    f"a pair has {length} tokens and max_length is {self.max_length} (prompt: "
                    f"{str(row.get('prompt'))[:80]}); raise max_length, or give too_long='drop', 'cut_left' or "
                    "'cut_longest_segment'"
                )
            shorter = None if self.too_long == "drop" else self._cut(row, prompt)
            if shorter is None:
                return {"prompt_ids": prompt, "prompt_segment_ids": [], "removed_tokens": LEFT_OUT}
            removed, prompt = len(prompt) - len(shorter), shorter
        ids = prompt_segments(self.segmenter, prompt, answers)
        return {"prompt_ids": prompt, "prompt_segment_ids": ids, "removed_tokens": removed}

    def _cut(self, row: dict[str, Any], prompt: list[int]) -> list[int] | None:
        """The prompt, cut so that the longer answer fits; None where it cannot be."""
        assert self.max_length is not None
        name = max(("chosen", "rejected"), key=lambda which: len(row[f"{which}_ids"]))
        answer, messages = list(row[f"{name}_ids"]), row[name]
        sample, encoder = _sample(row, messages), Encoder(self.segmenter)
        whole = encoder.encode(sample) if sample is not None and not row.get("chat_template_kwargs") else None
        if sample is None or whole is None or whole.input_ids != prompt + answer:
            return None
        cut = cut_chat(encoder, sample, whole, self.max_length, self.too_long)
        if cut is None or cut.input_ids[len(cut.input_ids) - len(answer) :] != answer:
            return None
        return cut.input_ids[: len(cut.input_ids) - len(answer)]


def _sample(row: dict[str, Any], answer: list[dict[str, Any]]) -> Sample | None:
    """The pair's prompt and one answer; None where the answer is not a single text."""
    if len(answer) != 1 or answer[0].get("tool_calls") or not answer[0].get("content"):
        return None
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    return Sample(tuple(row["prompt"]), answer[0]["content"], tools=None if not tools else tuple(tools))
