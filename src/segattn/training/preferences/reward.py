"""TRL's RewardTrainer with segment prompts: a model that gives conversations a number."""

from dataclasses import dataclass
from typing import Any

import torch
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from segattn.data import DataError
from segattn.errors import SegmentError
from segattn.modeling import enable
from segattn.segments import CAUSAL
from segattn.training.preferences.checks import check_options, segmenter_to_train_with, uncut
from segattn.training.preferences.tokens import SegmentTokenizer

__all__ = ["SegmentRewardCollator", "SegmentRewardTrainer"]

_SIDES = ("chosen", "rejected")


@dataclass
class SegmentRewardCollator(DataCollatorForPreference):
    """TRL's collator, with `segment_ids` (2 * pairs, length), int64, -1 at padding."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return TRL's batch with segment ids.

        Raises:
            SegmentError: rows without the columns chosen_segment_ids and rejected_segment_ids.
        """
        batch: dict[str, Any] = super().torch_call(examples)
        segment_ids = torch.full_like(batch["input_ids"], CAUSAL)
        rows = [row.get(f"{side}_segment_ids") for side in _SIDES for row in examples]
        for number, ids in enumerate(rows):
            if ids is None:
                raise SegmentError("a row has no segment ids; expected rows that SegmentRewardTrainer prepared")
            segment_ids[number, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        batch["segment_ids"] = segment_ids
        return batch


class SegmentRewardTrainer(RewardTrainer):
    """Tunes an enabled sequence classifier (num_labels=1) to give the better of two conversations the higher number.

    Rows are TRL's conversational ones: `chosen` and `rejected` as lists of messages, after `prompt` if there is one.
    The number is read at the last token, which sees all segments. Loss, metrics and saving are TRL's.

    Args:
        options: RewardTrainer's own. `model` must be enabled; `processing_class` is the segmenter's tokenizer.

    Raises:
        UnsupportedModelError: a model that is not enabled; an option that would drop the mask.
        SegmentError: a model without a segmenter.
        DataError: rows of plain text, or over `args.max_length`: nothing is cut or left out.
    """

    def __init__(self, **options: Any) -> None:
        self._segmenter = segmenter_to_train_with(options["model"])
        check_options(options, self._segmenter)
        args = options["args"] = options.get("args") or RewardConfig("trainer_output")
        if args.chat_template_path is not None:
            raise SegmentError(
                "chat_template_path is given; expected none, for segments are read from the tokenizer's own"
            )
        tokenizer = options["processing_class"]
        if tokenizer.pad_token is None:
            tokenizer.pad_token = args.pad_token or tokenizer.eos_token
        options["data_collator"] = options.get("data_collator") or SegmentRewardCollator(
            tokenizer.pad_token_id, pad_to_multiple_of=args.pad_to_multiple_of
        )
        super().__init__(**options)
        # TRL may have wrapped the model in an adapter: the wrapper must save the segmentation too.
        enable(self.model)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:  # noqa: ARG002
        with uncut(args) as max_length:
            rows = super()._prepare_dataset(dataset, SegmentTokenizer(self._segmenter), args, dataset_name)
        return rows.map(_Segments(self._segmenter, max_length))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns or []
        wanted = [f"{side}_segment_ids" for side in _SIDES]
        self._signature_columns: list[str] | None = [*columns, *(name for name in wanted if name not in columns)]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute TRL's loss on a batch that must hold segment ids."""
        if inputs.get("segment_ids") is None:
            raise SegmentError(
                f"the batch holds {sorted(inputs)} but no segment_ids; expected the trainer's own SegmentRewardCollator"
            )
        return super().compute_loss(model, inputs, *args, **kwargs)


@dataclass(frozen=True)
class _Segments:
    """Adds chosen_segment_ids and rejected_segment_ids to a row of chosen_ids and rejected_ids."""

    segmenter: Any
    max_length: int | None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        longest = max(len(row[f"{side}_ids"]) for side in _SIDES)
        if self.max_length is not None and longest > self.max_length:
            raise DataError(
                f"a conversation has {longest} tokens and max_length is {self.max_length}; raise max_length, or leave "
                "the row out"
            )
        return {f"{side}_segment_ids": self.segmenter.segment_ids(row[f"{side}_ids"]).tolist() for side in _SIDES}
