"""Items as tensors: token ids through the chat template, labels on the answers, segments through the segmenter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import segattn
from segattn.segments import IGNORED_LABEL

from .checkpoint import ANSWER_ROLE, make_segmenter, train_tokenizer
from .tables import COPIES, Item, split_items, to_sample

__all__ = ["Data", "Rows", "load_data"]


@dataclass(frozen=True)
class Rows:
    """Conversations of one length.

    Attributes:
        input_ids: int64 (items, length).
        labels: int64, the same shape; -100 but for the answer's entries and the end marker.
        hops: int64 (items,), how many steps each item asks for.
    """

    input_ids: Tensor
    labels: Tensor
    hops: Tensor

    def __getitem__(self, which: Any) -> "Rows":
        return Rows(self.input_ids[which], self.labels[which], self.hops[which])


@dataclass(frozen=True)
class Data:
    """What the arms of one task share; a policy of the segmenter makes the difference."""

    tokenizer: Any
    segmenter: segattn.Segmenter
    train: Rows
    held_out: Rows


def load_data(task: str, train_items: int, held_out_tables: int) -> Data:
    """Make the data of a task: items, a tokenizer trained on those to learn from, and both as tensors.

    Raises:
        LabelLeakError: an answer inside of a segment.
    """
    train, held_out = split_items(train_items, held_out_tables)
    tokenizer = train_tokenizer(to_sample(item, COPIES[task]) for item in train)
    segmenter = make_segmenter(tokenizer, "turns")
    halves = (_encode(items, COPIES[task], tokenizer) for items in (train, held_out))
    data = Data(tokenizer, segmenter, *halves)
    for policy in ("turns", "prefix"):
        for rows in (data.train, data.held_out):
            segattn.check_labels(segmenter.with_policy(policy).segment_ids(rows.input_ids), rows.labels)
    return data


def _encode(items: Sequence[Item], copies: int, tokenizer: Any) -> Rows:
    chats = [list(to_sample(item, copies).conversation) for item in items]
    input_ids = torch.tensor(tokenizer.apply_chat_template(chats, return_dict=False))
    marker = tokenizer.convert_tokens_to_ids(ANSWER_ROLE)
    # Everything after the answer's header is learned, the end marker too.
    answer = (input_ids == marker).long().cumsum(-1).roll(1, -1).bool()
    answer[:, 0] = False
    return Rows(input_ids, input_ids.masked_fill(~answer, IGNORED_LABEL), torch.tensor([item.hops for item in items]))
