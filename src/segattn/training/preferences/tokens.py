"""The segmenter in the place of the tokenizer that TRL prepares its data with."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from segattn.data import DataError

if TYPE_CHECKING:
    from segattn.templates import Segmenter

__all__ = ["SegmentTokenizer", "prompt_segments"]


class SegmentTokenizer:
    """Tokenizes chats through a segmenter, so that marker text typed in a message stays text.

    TRL calls `apply_chat_template` for chats and the object itself for plain texts, which have no segments and are
    refused. Everything else is the tokenizer's own.
    """

    def __init__(self, segmenter: "Segmenter") -> None:
        self.segmenter = segmenter

    def apply_chat_template(
        self,
        conversation: Any,
        *,
        tokenize: bool = True,
        return_dict: bool = True,
        chat_template: Any = None,
        **options: Any,
    ) -> Any:
        """Return a BatchEncoding of input_ids, attention_mask and segment_ids, lists.

        Raises:
            DataError: another chat template than the segmenter's.
        """
        assert tokenize
        assert return_dict
        if chat_template is not None:
            raise DataError("a chat_template is given; expected none, for segments are read from the tokenizer's own")
        return self.segmenter.apply_chat_template(conversation, **options)

    def __call__(self, text: Any = None, *args: Any, **options: Any) -> Any:  # noqa: ARG002
        """Refuse plain texts.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"the prompt is the text {str(text)[:60]!r}, which shows no segments; expected messages, e.g. "
            '[{"role": "user", "content": "..."}], and the completion as [{"role": "assistant", "content": "..."}]'
        )

    def __getattr__(self, name: str) -> Any:
        if name == "segmenter":  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.segmenter.tokenizer, name)


def prompt_segments(segmenter: "Segmenter", prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[int]:
    """Return the segment ids of a prompt, after making sure that completions neither open nor change a segment.

    Args:
        segmenter: tells segments from token ids.
        prompt: token ids, the generation prompt included.
        completions: token ids of what may follow.

    Raises:
        DataError: a completion holds a message that is a segment, or the prompt ends inside of one.
    """
    ids = segmenter.segment_ids(list(prompt)).tolist()
    for completion in completions:
        whole = segmenter.segment_ids([*prompt, *completion]).tolist()
        if whole != ids + [-1] * len(completion):
            place = next(n for n, (a, b) in enumerate(zip(whole, ids + [-1] * len(completion), strict=True)) if a != b)
            where = "the prompt" if place < len(prompt) else "the completion"
            token = segmenter.tokenizer.decode([[*prompt, *completion][place]])
            raise DataError(
                f"token {place} {token!r} of {where} lies in a segment that reaches into the completion or begins "
                "there; expected completions of assistant messages only, for a loss inside a segment would be on "
                "tokens that are already seen"
            )
    return ids
