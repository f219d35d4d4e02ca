"""A full disk: one clear line, no half-written folder, and what was saved before is still there."""

import errno
import os
import resource
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from segattn.training import TrainSettings, checkpoints, disk_space, train
from segattn.training.checkpoints import STAGING, chosen_checkpoint, fault
from segattn.training.disk_space import require_space, told_if_full
from segattn.training.errors import CheckpointError, DiskFullError
from segattn.training.trainer import SegmentSFTTrainer
from training.conftest import make_samples
from training.test_run import lora, sft

Usage = namedtuple("Usage", "total used free")


def run(tiny, folder, **options):
    arguments = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, **options}
    return train(TrainSettings(), sft(folder, **arguments), lora(tiny), samples=make_samples(7), held_out=[])


def with_free(monkeypatch, free):
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: Usage(10**12, 0, free))


@pytest.fixture(autouse=True)
def _nothing_else_is_waited_for(monkeypatch):
    """The disk of a test machine may be busy with others' files."""
    monkeypatch.setattr(checkpoints, "_force_to_disk", lambda path: None)


def assert_the_last_good_one_is_left(folder, step):
    assert [path.name for path in folder.glob("checkpoint-*")] == [f"checkpoint-{step}"]
    assert not (folder / STAGING).exists()
    assert fault(folder / f"checkpoint-{step}") is None


def test_too_little_room_is_seen_before_anything_is_written(tiny, tmp_path, monkeypatch):
    training_step = SegmentSFTTrainer.training_step

    def fill(self, *args, **kwargs):
        if self.state.global_step == 1:
            size = sum(file.stat().st_size for file in (tmp_path / "out" / "checkpoint-1").iterdir())
            with_free(monkeypatch, size - 1)
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(SegmentSFTTrainer, "training_step", fill)
    message = r"checkpoint 2 does not fit into .*out: about [\d.]+ \wB are needed and [\d.]+ \wB are free"
    with pytest.raises(DiskFullError, match=message):
        run(tiny, tmp_path / "out")
    assert_the_last_good_one_is_left(tmp_path / "out", 1)
    monkeypatch.undo()
    assert run(tiny, tmp_path / "out", resume_from_checkpoint="last").steps == 3


def test_a_disk_that_fills_while_it_is_written_to(tiny, tmp_path, monkeypatch):
    """No patched writer: the system refuses files over a size, as a quota does."""
    save_checkpoint = SegmentSFTTrainer._save_checkpoint

    def limited(self, *args):
        if self.state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            save_checkpoint(self, *args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(SegmentSFTTrainer, "_save_checkpoint", limited)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(
            DiskFullError, match=r"checkpoint 2 does not fit into .*What was saved before is still there"
        ):
            run(tiny, tmp_path / "out")
    finally:
        signal.signal(signal.SIGXFSZ, before)
    assert_the_last_good_one_is_left(tmp_path / "out", 1)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_every_writers_words_for_a_full_disk_are_understood(tmp_path, error):
    with (
        pytest.raises(DiskFullError, match="the tuned model does not fit") as raised,
        told_if_full(tmp_path, "the tuned model"),
    ):
        raise error
    assert raised.value.__cause__ is error


def test_torch_gives_no_reason_but_the_system_does(tmp_path, monkeypatch):
    """What torch says when a write fails is a position in a file."""
    with pytest.raises(RuntimeError, match="unexpected pos"), told_if_full(tmp_path, "a checkpoint"):
        raise RuntimeError("unexpected pos 704 vs 598")

    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(DiskFullError, match="No space left"), told_if_full(tmp_path, "a checkpoint"):
        raise RuntimeError("unexpected pos 704 vs 598")
    assert not list(tmp_path.iterdir())


def test_other_errors_of_the_file_system_name_the_folder(tmp_path):
    message = rf"a checkpoint could not be written to {tmp_path}: .*Read-only"
    with pytest.raises(CheckpointError, match=message), told_if_full(tmp_path, "a checkpoint"):
        raise OSError(errno.EROFS, "Read-only file system")


def test_a_folder_that_is_not_there_yet_is_on_a_disk_too(tmp_path, monkeypatch):
    with_free(monkeypatch, 5)
    with pytest.raises(DiskFullError, match="5 bytes are free"):
        require_space(tmp_path, 10, "a checkpoint")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_really_full(tiny, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=3m tmpfs {disk}") != 0:
        pytest.skip("nothing can be mounted here")
    try:
        with pytest.raises(DiskFullError, match=r"checkpoint \d+ does not fit into"):
            run(tiny, disk / "out", save_total_limit=None, max_steps=40)
        last = chosen_checkpoint("last", disk / "out")
        assert torch.load(last / "optimizer.pt", weights_only=True)["state"]
        assert shutil.disk_usage(disk).free < 2_000_000
    finally:
        os.system(f"umount {disk}")
