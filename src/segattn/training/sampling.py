"""Batches of rows of like length: less padding, in an order that only the seed and the epoch decide."""

from collections.abc import Iterator

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

__all__ = ["LengthGroups"]


class LengthGroups(LengthGroupedSampler):
    """transformers' length-grouped order, with the batches mixed.

    transformers sorts fifty batches at a time from long to short, and draws from the global random numbers, so that
    dropout would decide the order of the next epoch. Here the batches of an epoch are mixed, the longest one first
    (so that it is known early whether it fits), and the order is the same for every run of one seed, resumed or not.

    Args:
        batch_size: rows of one optimizer step.
        lengths: of all rows.
        seed: decides the order.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = list(super().__iter__())
        whole = len(order) // self.batch_size
        mixed = [0, *(1 + torch.randperm(max(whole - 1, 0), generator=self.generator)).tolist()][:whole]
        for batch in mixed:
            yield from order[batch * self.batch_size : (batch + 1) * self.batch_size]
        yield from order[whole * self.batch_size :]
