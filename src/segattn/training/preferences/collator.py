"""Pairs of answers as one batch, segment ids included."""

from dataclasses import dataclass
from typing import Any

import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from segattn.errors import SegmentError
from segattn.segments import CAUSAL

__all__ = ["SegmentPreferenceCollator"]


@dataclass
class SegmentPreferenceCollator(DataCollatorForPreference):
    """TRL's collator, with `segment_ids` (2 * pairs, length), int64: the prompt's own, -1 on answers and padding."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return TRL's batch with segment ids.

        Raises:
            SegmentError: rows without the column prompt_segment_ids, or of another length than prompt_ids.
        """
        batch: dict[str, Any] = super().torch_call(examples)
        segment_ids = torch.full_like(batch["input_ids"], CAUSAL)
        for number, row in enumerate([*examples, *examples]):
            ids = row.get("prompt_segment_ids")
            if ids is None or len(ids) != len(row["prompt_ids"]):
                raise SegmentError(
                    f"row {number % len(examples)} has prompt_segment_ids for {'no' if ids is None else len(ids)} "
                    f"tokens and a prompt of {len(row['prompt_ids'])}; expected rows that SegmentDPOTrainer prepared"
                )
            segment_ids[number, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        batch["segment_ids"] = segment_ids
        return batch
