"""What a checkpoint says its run was made with, and what a run that goes on may change."""

import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from cli.tiny_chat import make_model
from segattn.training import SFTSettings, TrainSettings, train
from segattn.training.checkpoints import MANIFEST
from segattn.training.errors import CheckpointError
from segattn.training.fingerprint import compare_settings, settings_of
from training.conftest import make_samples
from training.test_run import lora, sft

ROWS = {"input_ids": [[1, 2], [3]], "labels": [[-100, 2], [3]], "segment_ids": [[0, -1], [-1]]}


def told(tmp_path, rows=ROWS, model=None, **options):
    arguments = SFTSettings(str(tmp_path), bf16=False, **options)
    dataset = None if rows is None else Dataset.from_dict(rows)
    return settings_of(
        SimpleNamespace(
            args=arguments, train_dataset=dataset, model=model or make_model(), run_settings={"policy": "turns"}
        )
    )


def test_the_same_run_is_told_by_the_same_words(tmp_path):
    first = told(tmp_path)
    assert compare_settings(json.loads(json.dumps(first)), told(tmp_path / "elsewhere"), "x") == []
    assert first["policy"] == "turns"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "seed was 42 and is now 5"),
        ({"learning_rate": 1.0}, r"learning_rate was 0\.0002 and is now 1\.0"),
        ({"per_device_train_batch_size": 3}, "batch size was 8 and is now 3"),
        ({"rows": {**ROWS, "labels": [[-100, 2], [-100]]}}, "the training data differ"),
        ({"rows": {name: [[*value[0], *value[1]], []] for name, value in ROWS.items()}}, "the training data differ"),
        ({"rows": {name: value[::-1] for name, value in ROWS.items()}}, "the training data differ"),
        ({"model": make_model(seed=1)}, "the base weights differ"),
        ({"model": make_model().to(torch.bfloat16)}, "the base weights differ"),
    ],
)
def test_what_decides_the_weights_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=rf"x is of a run with other settings: {message}.*another --output_dir"):
        compare_settings(told(tmp_path), told(tmp_path, **change), "x")


def test_more_steps_are_told_and_used(tmp_path):
    assert compare_settings(told(tmp_path), told(tmp_path, max_steps=7), "x") == ["max_steps was -1 and is now 7"]


def test_a_run_goes_on_only_with_its_own_settings(tiny, tmp_path, caplog):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    train(TrainSettings(), sft(tmp_path, **options), lora(tiny), samples=make_samples(4), held_out=[])
    options |= {"resume_from_checkpoint": "last", "max_steps": 2}
    message = "the training data differ .*adapter r was 4 and is now 2.*attention was 'segments' and is now 'causal'"
    with pytest.raises(CheckpointError, match=message):
        train(
            TrainSettings(attention="causal"),
            sft(tmp_path, **options),
            lora(tiny, lora_r=2),
            samples=make_samples(5),
            held_out=[],
        )
    # Without a manifest, as plain TRL leaves it, nothing can be compared: that is said.
    (tmp_path / "checkpoint-1" / MANIFEST).unlink()
    result = train(TrainSettings(), sft(tmp_path, **options), lora(tiny), samples=make_samples(4), held_out=[])
    assert result.steps == 2
    assert "does not record its settings" in caplog.text
