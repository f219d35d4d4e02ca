"""Checkpoints on disk: what is whole is found, what is not is told, and nothing good is lost."""

import json
import os
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from segattn.training import checkpoints
from segattn.training.checkpoints import checkpoints_in, chosen_checkpoint, fault, publish, read_manifest, rotate, seal
from segattn.training.errors import CheckpointError

PARTS = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def write_parts(folder, step=1):
    """What transformers writes, without a manifest."""
    folder.mkdir(parents=True)
    save_file({"weight": torch.arange(6.0) + step}, folder / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.arange(5) + step}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (folder / "README.md").write_text("a card\n")
    return folder


def write(output_dir, step):
    """A sealed and published checkpoint."""
    staged = write_parts(output_dir / checkpoints.STAGING / f"checkpoint-{step}", step)
    seal(staged, step=step, settings={"seed": 3}, versions={}, sums={})
    publish(staged, output_dir / staged.name)
    return output_dir / staged.name


def flip(file, place):
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 1
    file.write_bytes(content)


def test_a_sealed_checkpoint_is_whole_and_remembers_what_it_was_told(tmp_path):
    folder = write(tmp_path, 4)
    assert fault(folder) is None
    manifest = read_manifest(folder)
    assert (manifest.step, manifest.settings) == (4, {"seed": 3})
    assert set(manifest.files) == set(PARTS)
    (folder / "README.md").write_text("edited by hand\n")  # no part of the run
    assert fault(folder) is None


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: os.truncate(file, file.stat().st_size - 1), "bytes, and"),
        (lambda file: os.truncate(file, 0), "has 0 bytes"),
        (lambda file: file.unlink(), "is missing"),
        (lambda file: flip(file, -1), "has changed since it was written"),
    ],
)
def test_every_damage_to_every_file_is_told_by_name_and_the_one_before_is_used(tmp_path, caplog, name, damage, message):
    before, last = write(tmp_path, 2), write(tmp_path, 4)
    damage(last / name)
    assert chosen_checkpoint("last", tmp_path) == before
    [line] = caplog.messages
    assert str(last) in line
    assert name in line
    assert message in line
    with pytest.raises(CheckpointError, match=rf"checkpoint-4 cannot be gone on with: {name} .*{message}"):
        chosen_checkpoint(str(last), tmp_path)
    assert last.is_dir()  # nothing is deleted that somebody may want to look at


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from([*PARTS, checkpoints.MANIFEST]), place=st.integers(0, 10_000))
def test_a_flipped_bit_anywhere_is_seen(tmp_path_factory, name, place):
    folder = write(tmp_path_factory.mktemp("run"), 4)
    flip(folder / name, place)
    assert fault(folder) is not None


def test_a_manifest_that_is_cut_off_is_no_manifest(tmp_path):
    folder = write(tmp_path, 4)
    os.truncate(folder / checkpoints.MANIFEST, 50)
    assert fault(folder) == "segattn_checkpoint.json is damaged"


def test_checkpoints_of_plain_trl_are_opened_for_want_of_a_manifest(tmp_path):
    folder = write_parts(tmp_path / "checkpoint-3")
    assert fault(folder) is None
    for name in PARTS:
        kept = (folder / name).read_bytes()
        os.truncate(folder / name, len(kept) // 2)
        assert name in fault(folder)
        (folder / name).unlink()
        assert ("the weights" if name.endswith("safetensors") else name) in fault(folder)
        (folder / name).write_bytes(kept)
    flip(folder / "optimizer.pt", (folder / "optimizer.pt").read_bytes().index(b"\x03\x00\x00\x00\x00\x00\x00\x00"))
    assert "optimizer.pt is damaged" in fault(folder)


def test_a_checkpoint_without_its_optimizer_cannot_be_gone_on_with(tmp_path):
    staged = write_parts(tmp_path / "checkpoint-3")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (staged / name).unlink()
    seal(staged, step=3, settings={}, versions={}, sums={})
    assert fault(staged) == "optimizer.pt is missing (was it saved with --save_only_model?)"


def test_which_checkpoint_is_chosen(tmp_path):
    first, second = write(tmp_path, 9), write(tmp_path, 10)
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-12").write_text("no folder")
    for word in ("last", "true", True, "auto"):
        assert chosen_checkpoint(word, tmp_path) == second
    for word in (None, "false", False, "no"):
        assert chosen_checkpoint(word, tmp_path) is None
    assert chosen_checkpoint(str(first), tmp_path) == first
    with pytest.raises(CheckpointError, match="there is no such folder"):
        chosen_checkpoint(str(tmp_path / "checkpoint-11"), tmp_path)


def test_without_any_checkpoint_auto_begins_and_last_is_an_error(tmp_path):
    assert chosen_checkpoint("auto", tmp_path) is None
    with pytest.raises(CheckpointError, match=r"holds no whole checkpoint; expected one to go on with\. To begin anew"):
        chosen_checkpoint("last", tmp_path)
    (write(tmp_path, 2) / "optimizer.pt").unlink()
    for word in ("auto", "last"):  # not even auto: something was lost
        with pytest.raises(CheckpointError, match=r"no whole checkpoint \(1 damaged, named above\)"):
            chosen_checkpoint(word, tmp_path)


def test_the_last_one_is_that_which_was_saved_last(tmp_path):
    """A run that began anew in the same folder has smaller numbers, and newer checkpoints."""
    write(tmp_path, 100)
    newer = write(tmp_path, 5)
    assert chosen_checkpoint("last", tmp_path) == newer


def test_a_process_that_ends_before_the_rename_has_lost_nothing(tmp_path):
    write(tmp_path, 2)
    staged = write_parts(tmp_path / checkpoints.STAGING / "checkpoint-4", 4)
    assert chosen_checkpoint("last", tmp_path) == tmp_path / "checkpoint-2"  # not sealed yet
    seal(staged, step=4, settings={}, versions={}, sums={})
    assert chosen_checkpoint("last", tmp_path) == tmp_path / "checkpoint-4"
    assert fault(tmp_path / "checkpoint-4") is None


def test_a_checkpoint_gives_way_to_another_of_its_number(tmp_path):
    write(tmp_path, 4)
    staged = write_parts(tmp_path / checkpoints.STAGING / "checkpoint-4", 5)
    seal(staged, step=4, settings={"seed": 8}, versions={}, sums={})
    publish(staged, tmp_path / "checkpoint-4")
    assert read_manifest(tmp_path / "checkpoint-4").settings == {"seed": 8}
    assert fault(tmp_path / "checkpoint-4") is None


@settings(max_examples=10, deadline=None)
@given(
    steps=st.lists(st.integers(1, 30), min_size=1, max_size=6, unique=True),
    limit=st.sampled_from([None, 0, 1, 2, 3]),
    best=st.integers(0, 5),
    data=st.data(),
)
def test_rotation_keeps_the_newest_the_best_and_no_more_than_its_limit(tmp_path_factory, steps, limit, best, data):
    output_dir = tmp_path_factory.mktemp("run")
    folders = [write(output_dir, step) for step in steps]  # in the order they were saved
    keep = [folders[-1], folders[best % len(folders)]]
    rotate(output_dir, limit, keep)
    left = set(checkpoints_in(output_dir))
    assert set(keep) <= left
    if not limit:
        assert left == set(folders)
    else:
        assert len(left) == min(len(folders), max(limit, len(set(keep))))
        others = [folder for folder in folders if folder not in keep]
        assert [folder for folder in others if folder in left] == others[len(others) - len(left - set(keep)) :]
    assert not (output_dir / checkpoints.STAGING).exists() or not list((output_dir / checkpoints.STAGING).iterdir())
    assert all(fault(folder) is None for folder in left)


def test_a_rotation_that_is_cut_off_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    write(tmp_path, 2)
    last = write(tmp_path, 4)

    def end(folder, **options):
        next(folder.rglob("optimizer.pt")).unlink()
        raise SystemExit

    monkeypatch.setattr(shutil, "rmtree", end)
    with pytest.raises(SystemExit):
        rotate(tmp_path, 1, [last])
    assert checkpoints_in(tmp_path) == [last]
