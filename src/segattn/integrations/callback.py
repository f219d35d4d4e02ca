"""Segments in any trainer that is built on transformers' Trainer, as a callback."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from segattn.errors import SegmentError, UnsupportedModelError
from segattn.modeling import enable
from segattn.modeling.state import Backend
from segattn.segments import check_labels
from segattn.templates import Segmenter

__all__ = ["SegmentAttentionCallback", "check_rows"]


class SegmentAttentionCallback(TrainerCallback):
    """Enables the trainer's model as soon as the trainer has it, and checks the rows before the first step.

    The trainer need not know of segments: the enabled model derives them from the token ids of each batch.

    Args:
        segmenter: which messages are segments; by default read from the chat template of the trainer's tokenizer.
        policy: of that segmenter; "turns", "prefix" or "causal". Not used with a `segmenter`.
        backend: see `segattn.enable`.

    Raises:
        SegmentError: the trainer was made without a tokenizer, or see `check_rows`.
        TemplateError: the tokenizer's chat template cannot be read.
        UnsupportedModelError: the model cannot follow segments, or its attention implementation would drop them; data
            that streams.
    """

    def __init__(
        self, segmenter: Segmenter | None = None, *, policy: str = "turns", backend: Backend | None = None
    ) -> None:
        self.segmenter = segmenter
        self.policy = policy
        self.backend = backend
        self._held_out: Any = None

    def on_init_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:  # noqa: ARG002
        """Enable the model, before anything has wrapped it."""
        if self.segmenter is None:
            tokenizer = objects.get("processing_class")
            if not hasattr(tokenizer, "apply_chat_template"):
                raise SegmentError(
                    f"the trainer's processing_class is a {type(tokenizer).__name__}; expected a tokenizer with a chat "
                    "template. Pass one to the trainer, or SegmentAttentionCallback(segmenter)"
                )
            self.segmenter = Segmenter.from_tokenizer(tokenizer, policy=self.policy)
        enable(objects["model"], self.segmenter, backend=self.backend)

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:  # noqa: ARG002
        """Check the rows of the training data."""
        self._check(objects["train_dataloader"].dataset)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **objects: Any) -> None:  # noqa: ARG002
        """Check the rows of held-out data, the first time they are scored."""
        rows = objects["eval_dataloader"].dataset
        if rows is not self._held_out:
            self._check(rows)
            self._held_out = rows

    def _check(self, rows: Any) -> None:
        if not hasattr(rows, "__len__"):
            raise UnsupportedModelError(
                f"the data set is a {type(rows).__name__}, whose rows cannot be read ahead to see whether they show "
                "segments; expected one with a length (LLaMA-Factory, Axolotl: streaming: false)"
            )
        assert self.segmenter is not None
        check_rows(rows, self.segmenter)


def check_rows(rows: Iterable[Any], segmenter: Segmenter) -> None:
    """Check that rows show segments and that no label lies where its predecessor can see it.

    A row without segments is a row in whose tokens the template's markers do not occur: it would train causally.

    Args:
        rows: each with input_ids and labels, perhaps attention_mask and position_ids, as lists or tensors (length,).
        segmenter: the model's.

    Raises:
        SegmentError: a row that shows no segment, unless the segmenter's policy is "causal".
        LabelLeakError: a label inside of a segment, as options that train on prompts make them.
        UnsupportedModelError: a packed row with an attention mask, under which its documents would see each other.
    """
    for number, row in enumerate(rows):
        _refuse_masked_packing(number, row)
        tokens = _row(row["input_ids"])
        segment_ids = segmenter.segment_ids(tokens)
        if segmenter.policy != "causal" and not bool((segment_ids >= 0).any()):
            shown = getattr(segmenter.tokenizer, "decode", str)(tokens[0, :40].tolist())
            raise SegmentError(
                f"row {number} of the data set shows no segment: it holds no prompt marker of the chat template, so it "
                f"would train causally. It begins with {shown!r}. Expected rows written by the tokenizer's own chat "
                "template; or the policy 'causal', to train causally on purpose"
            )
        if row.get("labels") is not None:
            check_labels(segment_ids, _row(row["labels"]))


def _refuse_masked_packing(number: int, row: Any) -> None:
    positions, mask = row.get("position_ids"), row.get("attention_mask")
    if mask is None:
        return
    numbered = bool((_row(mask) > 1).any())
    restarts = positions is not None and bool((_row(positions).diff() <= 0).any())
    if numbered or restarts:
        raise UnsupportedModelError(
            f"row {number} of the data set holds several documents and an attention_mask, under which transformers "
            "would let them see each other. Expected one conversation in each row (LLaMA-Factory: packing: false), or "
            "rows with position_ids that restart and no attention_mask"
        )


def _row(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.int64).reshape(1, -1)
