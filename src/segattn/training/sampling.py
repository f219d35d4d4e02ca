"""The order of the rows: batches of like length, and batches that several processes can share evenly."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import RandomSampler, Sampler, SequentialSampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from segattn.segments import IGNORED_LABEL

__all__ = ["Filled", "LengthGroups", "fill", "same_everywhere"]


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


class Filled(Sampler[int]):
    """The order of another sampler, and after it the rows that `fill` has added.

    Args:
        sampler: orders the rows that carry labels; its `set_epoch`, where it has one, goes on being called.
        added: how many rows follow them.
    """

    def __init__(self, sampler: Any, added: int) -> None:
        self.sampler = sampler
        self.added = added

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        yield from self.sampler
        yield from range(len(self.sampler), len(self))

    def __len__(self) -> int:
        return len(self.sampler) + self.added


def same_everywhere(sampler: Any, rows: int, seed: int) -> Any:
    """Return a sampler whose order is the same in all processes: as accelerate makes a random one in a single process.

    Args:
        sampler: transformers' choice, None for the rows as they are.
        rows: how many there are.
        seed: decides a random order.
    """
    if sampler is None:
        return SequentialSampler(range(rows))
    return SeedableRandomSampler(range(rows), data_seed=seed) if isinstance(sampler, RandomSampler) else sampler


def fill(dataset: Any, multiple: int) -> Any:
    """Return the rows of a datasets.Dataset and, up to a multiple of `multiple`, copies of the shortest without labels.

    Several processes take the same number of rows each. Where rows are missing for that, accelerate repeats the first
    ones, which would then count twice in the loss; rows without labels count for nothing.
    """
    from datasets import Dataset, concatenate_datasets

    missing = -len(dataset) % multiple
    if not missing or not len(dataset):
        return dataset
    lengths = [len(row) for row in dataset[:]["input_ids"]]
    row = dataset[lengths.index(min(lengths))]
    row["labels"] = [IGNORED_LABEL] * len(row["labels"])
    rows = Dataset.from_list([row] * missing, features=dataset.features)
    return concatenate_datasets([dataset, rows])
