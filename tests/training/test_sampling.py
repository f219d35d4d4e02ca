"""Batches of rows of like length, in an order that the seed and the epoch decide."""

import itertools

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import RandomSampler, SequentialSampler

import segattn
from segattn.training import SegmentCollator, SFTSettings, TrainSettings
from segattn.training.sampling import Filled, LengthGroups, fill, same_everywhere
from segattn.training.trainer import SegmentSFTTrainer
from training.test_run import run
from training.test_trainer import dataset, make_trainer


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 7), st.integers(0, 3))
def test_an_epoch_holds_every_row_once(lengths, size, epoch):
    sampler = LengthGroups(size, lengths, seed=5)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    assert list(sampler) == order  # global random numbers do not matter
    if len(lengths) >= size:
        assert max(lengths[row] for row in order[:size]) == max(lengths)


def test_batches_are_of_like_length_mixed_and_other_each_epoch():
    lengths = [1 + n % 97 for n in range(800)]
    sampler = LengthGroups(8, lengths, seed=0)
    torch.manual_seed(0)
    first = list(sampler)
    torch.manual_seed(1)
    assert list(LengthGroups(8, lengths, seed=0)) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    batches = [[lengths[row] for row in first[start : start + 8]] for start in range(0, 800, 8)]
    padding = sum(max(batch) * len(batch) - sum(batch) for batch in batches)
    assert padding < 0.1 * sum(lengths)
    longest = [max(batch) for batch in batches[1:]]
    falls = sum(after < before for before, after in itertools.pairwise(longest))
    assert 30 < falls < 70  # sorted batches would fall nearly always


def seen(trainer):
    return [row for batch in trainer.get_train_dataloader() for row in batch["input_ids"].tolist()]


def test_a_trainer_groups_by_length_with_its_seed(tmp_path):
    options = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2}
    trainer = make_trainer(tmp_path, **options)
    assert isinstance(trainer._get_train_sampler(), LengthGroups)
    _, rows = dataset()
    found = [[token for token in row if token != 257] for row in seen(trainer)]
    assert sorted(found) == sorted([token for token in row if token != 257] for row in rows["input_ids"])
    torch.manual_seed(99)
    assert seen(make_trainer(tmp_path, **options)) == seen(make_trainer(tmp_path, **options))
    assert seen(make_trainer(tmp_path, **options, seed=7)) != seen(make_trainer(tmp_path, **options))
    assert SFTSettings(str(tmp_path), use_cpu=True, bf16=False).train_sampling_strategy == "group_by_length"


def test_a_resumed_run_sees_the_rows_of_an_unbroken_one(tiny, tmp_path, monkeypatch):
    """Seven rows in batches of two: four steps an epoch; the run is cut in the middle of the second one."""
    rows = []
    compute_loss = SegmentSFTTrainer.compute_loss

    def record(self, model, inputs, *args, **kwargs):
        rows[-1].append(inputs["input_ids"].tolist())
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SegmentSFTTrainer, "compute_loss", record)
    for folder, options in [
        ("whole", {"max_steps": 8}),
        ("cut", {"max_steps": 8, "save_strategy": "steps", "save_steps": 6}),
    ]:
        rows.append([])
        run(tiny, tmp_path / folder, TrainSettings(), **options)
    assert rows[0] == rows[1]
    assert rows[0][:4] != rows[0][4:]
    for folder in (tmp_path / "cut").glob("checkpoint-*"):
        if not folder.name.endswith("-6"):
            folder.rename(tmp_path / folder.name)
    rows.append([])
    run(tiny, tmp_path / "cut", TrainSettings(), max_steps=8, resume_from_checkpoint="last")
    assert rows[2] == rows[0][6:]


def test_a_collator_of_another_kind_cannot_join_rows(tmp_path):
    trainer = make_trainer(tmp_path)
    assert isinstance(trainer.data_collator, SegmentCollator)
    with pytest.raises(segattn.UnsupportedModelError, match="data_collator is a function"):
        SegmentSFTTrainer(
            model=trainer.model,
            args=SFTSettings(str(tmp_path), packing=True, use_cpu=True, bf16=False),
            data_collator=lambda rows: rows,
            train_dataset=trainer.train_dataset,
        )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 8))
def test_rows_are_filled_up_with_rows_that_count_for_nothing(lengths, multiple):
    columns = {"input_ids": [[n] * n for n in lengths], "labels": [[n] * n for n in lengths]}
    rows = Dataset.from_dict({**columns, "segment_ids": [[0] * n for n in lengths]})
    filled = fill(rows, multiple)
    assert len(filled) == -(-len(lengths) // multiple) * multiple
    assert filled[: len(lengths)] == rows[:]
    for row in list(filled)[len(lengths) :]:
        assert len(row["input_ids"]) == min(lengths)
        assert row["labels"] == [-100] * min(lengths)


def test_added_rows_come_last_in_every_epoch():
    order = Filled(LengthGroups(2, [3, 1, 2], seed=0), 2)
    for epoch in range(3):
        order.set_epoch(epoch)
        assert order.sampler.epoch == epoch
        assert list(order)[3:] == [3, 4]
        assert sorted(order) == list(range(len(order))) == list(range(5))


def test_a_random_order_is_that_of_one_process():
    """There accelerate puts its own sampler in the place of torch's, with the seed of the run."""
    torch.manual_seed(7)
    ours = same_everywhere(RandomSampler(range(20)), 20, seed=7)
    accelerates = SeedableRandomSampler(range(20), data_seed=None)
    for epoch in range(2):
        ours.set_epoch(epoch)
        accelerates.set_epoch(epoch)
        assert list(ours) == list(accelerates)
    assert isinstance(same_everywhere(None, 3, seed=0), SequentialSampler)
    grouped = LengthGroups(2, [3, 1, 2], seed=0)
    assert same_everywhere(grouped, 3, seed=0) is grouped
