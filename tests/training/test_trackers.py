"""TensorBoard and Weights & Biases, run for real (offline), and what they wrote read back."""

import json
import struct
import time

import pytest

import segattn
from segattn.training import ModelSettings, SFTSettings, TrainSettings, train
from segattn.training.trackers import check_trackers
from training.conftest import make_samples

STEPS = [2, 4]


def tracked_run(tiny, folder, tracker):
    arguments = SFTSettings(
        str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        bf16=False,
        disable_tqdm=True,
        report_to=[tracker],
    )
    model = ModelSettings(model_name_or_path=tiny, lora_r=2)
    settings = TrainSettings(opening_steps=3)
    return train(settings, arguments, model, samples=make_samples(6), held_out=make_samples(2))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_tensorboard_gets_the_curves_the_rates_and_the_settings(tiny, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (segattn[tensorboard])")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    result = tracked_run(tiny, tmp_path / "out", "tensorboard")
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    scalars = {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}
    assert scalars["train/loss"] == pytest.approx(dict(result.train_losses))
    assert scalars["eval/loss"] == pytest.approx({point.step: point.loss for point in result.curve})
    opening = {point.step: point.opening_loss for point in result.curve if point.opening_loss is not None}
    assert scalars["eval/opening_loss"] == pytest.approx(opening)
    assert sorted(opening) == [0, 2]
    for name in ("tokens_per_second", "answer_tokens_per_second", "padding_share"):
        assert scalars[f"train/{name}"] == pytest.approx({point["step"]: point[name] for point in result.speed})
    assert scalars["train/opening_bias"] == pytest.approx({2: -8 / 3, 4: 0})
    [text] = events.Tensors("args/text_summary")
    written = json.loads(text.tensor_proto.string_val[0])
    assert written["segattn/attention"] == "segments"
    assert written["segattn/opening_steps"] == 3


def test_wandb_offline_gets_the_curves_the_rates_and_the_settings(tiny, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    for name, value in {"MODE": "offline", "SILENT": "true", "DIR": str(tmp_path), "DATA_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    try:
        result = tracked_run(tiny, tmp_path / "out", "wandb")
        config = dict(wandb.run.config)
    finally:
        wandb.finish()
    assert config["segattn/opening_steps"] == 3
    assert config["segattn/policy"] == "turns"
    [file] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    history = read_history(file)
    assert [row["train/global_step"] for row in history if "train/loss" in row] == STEPS
    assert [row["train/loss"] for row in history if "train/loss" in row] == pytest.approx(
        [loss for _, loss in result.train_losses]
    )
    assert [row["eval/loss"] for row in history if "eval/loss" in row] == pytest.approx(
        [point.loss for point in result.curve]
    )
    assert sum("eval/opening_loss" in row for row in history) == 2
    assert [row["train/tokens_per_second"] for row in history if "train/loss" in row] == [
        point["tokens_per_second"] for point in result.speed
    ]


BLOCK, HEADER = 32768, 7


def read_records(data):
    """The records of a LevelDB log (7 bytes of a file header, then blocks), which is what wandb writes offline."""
    place, record = HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)  # checksum, length, and 1 whole, 2 first, 4 last
        record += data[place + HEADER : place + HEADER + size]
        place += HEADER + size
        if kind in (1, 4):
            yield record
            record = b""


def read_history(file):
    """The rows that were logged, from wandb's own binary file."""
    from wandb.proto.wandb_internal_pb2 import Record

    deadline = time.monotonic() + 60
    while True:  # another process writes the file, and the record of the exit last
        records = [Record.FromString(data) for data in read_records(file.read_bytes())]
        if any(record.HasField("exit") for record in records) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    histories = [record.history.item for record in records if record.HasField("history")]
    return [{one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in row} for row in histories]


def test_what_was_noted_for_trackers_is_not_mixed_with_the_arguments(tiny, tmp_path):
    tracked_run(tiny, tmp_path / "out", "none")
    content = json.loads((tmp_path / "out" / "training_result.json").read_text())
    assert content["settings"]["opening_steps"] == 3
    assert not [name for name in content["sft"] if name.startswith("segattn")]


def test_a_tracker_that_is_missing_is_said_before_anything_is_loaded(tmp_path, monkeypatch):
    for name in ("tensorboard", "wandb"):
        monkeypatch.setattr(f"transformers.integrations.is_{name}_available", lambda: False)
        with pytest.raises(segattn.UnsupportedModelError, match=rf"--report_to {name} .* pip install"):
            tracked_run("no model", tmp_path / "out", name)
    check_trackers(None)
    check_trackers("none")
    check_trackers(["clearml"])
