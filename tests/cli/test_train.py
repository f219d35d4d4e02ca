"""The train command: TRL's flags and ours, one clear line for what cannot be read."""

import json
import os
import signal
from dataclasses import fields

import pytest
from typer.testing import CliRunner

import segattn
from segattn.cli.main import app
from segattn.cli.train import COMMAND_HELP, short_forms
from segattn.training import SegmentSFTTrainer, TrainSettings

ROWS = [{"text": f"where is card {n}", "intent": f"card_{n % 3}"} for n in range(8)]


def run(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "intents"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    return folder


QUICK = ("--max_steps", 2, "--per_device_train_batch_size", 2, "--lora_r", 2, "--bf16", "false")


@pytest.mark.parametrize(("attention", "policy"), [("segments", "prefix"), ("causal", "causal")])
def test_a_run_saves_an_adapter_that_records_its_mask(checkpoints, data, tmp_path, attention, policy):
    out = tmp_path / "out"
    flags = ("--attention", attention, "--policy", "prefix", "--output_dir", out, "--json")
    result = run("--model", checkpoints / "base", "--data", data, *flags, *QUICK)
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)  # log lines go to stderr
    assert shown["steps"] == 2
    assert [point["step"] for point in shown["curve"]] == [0, 2]
    assert shown == json.loads((out / "training_result.json").read_text())["result"]
    model, _ = segattn.from_pretrained(out)
    assert segattn.is_enabled(model)
    assert json.loads((out / "segment_attention.json").read_text())["segmenter"]["policy"] == policy
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 2


def test_flags_from_a_file_and_plain_output(checkpoints, data, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model_name_or_path: {checkpoints / 'base'}\ndata: {data}\nmax_steps: 1\nlora_r: 2\nbf16: false\n"
        f"opening_steps: 1\noutput_dir: {tmp_path / 'unused'}\n"
    )
    result = run("--config", config, "--output_dir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("held-out answer loss after step 0: ")
    assert lines[-1] == str(tmp_path / "out")
    assert not (tmp_path / "unused").exists()
    assert json.loads((tmp_path / "out" / "training_result.json").read_text())["settings"]["opening_steps"] == 1


@pytest.mark.parametrize("join", ["packing: true", "padding_free: true"])
def test_a_file_asks_for_joined_rows_and_for_cuts(checkpoints, tmp_path, caplog, join):
    rows = [{"prompt": "where is it? " * (n % 4 + 1), "completion": f"in room {n}"} for n in range(8)]
    data, config = tmp_path / "rooms.jsonl", tmp_path / "run.yaml"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.write_text(
        f"model_name_or_path: {checkpoints / 'base'}\ndata: {data}\nmax_steps: 2\nlora_r: 2\nbf16: false\n"
        f"{join}\nmax_length: 70\ntoo_long: cut_longest_segment\noutput_dir: {tmp_path / 'out'}\n"
    )
    result = run("--config", config, "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert (shown["samples"], shown["dropped"], shown["cut"]) == (8, 0, 2)
    assert shown["removed_tokens"] == 24
    assert f"cut 2 of 8 training samples to 70 tokens ({shown['removed_tokens']} tokens removed)" in caplog.text
    plain = run("--config", config)
    assert "cut 2 samples to 70 tokens (24 tokens removed), left out 0" in plain.stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modle", "x"], "there is no flag --modle; did you mean --model?"),
        (["--openning-steps", "3"], "did you mean --opening-steps?"),
        (["--attention", "both"], "invalid choice: 'both'"),
        (["--max_steps", "many"], "argument --max_steps"),
        (["--config", "none.yaml"], "No such file"),
        ([], "there is no training data; pass --data"),
        (
            ["--data", "x", "--packing", "--packing_strategy", "wrapped"],
            "--packing_strategy wrapped cannot be used here",
        ),
        (["--data", "x", "--too_long", "cut"], "invalid choice: 'cut'"),
        (["--data", "none.jsonl"], "none.jsonl does not exist"),
    ],
)
def test_what_cannot_be_run_is_one_clear_line(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    [line] = [line for line in result.stderr.splitlines() if line.startswith("segattn: ")]
    assert message in line
    assert "usage:" not in result.output


def test_help_names_every_flag_of_ours_and_all_flags_every_flag_of_trl():
    for field in fields(TrainSettings):
        assert f"`--{field.name}`" in COMMAND_HELP
    assert "segattn train --model smollm2" in run("--help").output
    listed = run("--all-flags").output
    for flag in ("--per_device_train_batch_size", "--lora_target_modules", "--opening_steps", "--deepspeed"):
        assert flag in listed


def test_a_stopped_run_says_so_is_no_success_and_goes_on(checkpoints, data, tmp_path, monkeypatch):
    training_step = SegmentSFTTrainer.training_step

    def press_ctrl_c(self, *arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return training_step(self, *arguments, **options)

    monkeypatch.setattr(SegmentSFTTrainer, "training_step", press_ctrl_c)
    flags = ("--model", checkpoints / "base", "--data", data, "--output_dir", tmp_path / "out", *QUICK)
    result = run(*flags)
    assert result.exit_code == 130
    assert "stopped early: 1 steps" in result.stdout
    assert (tmp_path / "out" / "checkpoint-1" / "trainer_state.json").is_file()
    monkeypatch.undo()
    result = run(*flags, "--resume", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"] == 2
    result = run(*flags, "--lora_alpha", 3, "--resume")
    assert result.exit_code == 2
    assert "is of a run with other settings: adapter lora_alpha was 64 and is now 3" in result.stderr


def test_a_loss_that_is_not_finite_is_a_failure_of_the_run_not_of_its_flags(checkpoints, data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        SegmentSFTTrainer, "_get_grad_norm", lambda self, *_, **__: self._watch.check(self, float("nan"))
    )
    result = run("--model", checkpoints / "base", "--data", data, "--output_dir", tmp_path / "out", *QUICK)
    assert result.exit_code == 1
    assert "segattn: the gradient norm of step 1 is nan; the batch is in" in result.stderr
    assert (tmp_path / "out" / "not_finite_batch.json").is_file()


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (["--resume"], ["--resume_from_checkpoint", "last"]),
        (["--resume", "--seed", "1"], ["--resume_from_checkpoint", "last", "--seed", "1"]),
        (["--resume", "auto", "--seed", "1"], ["--resume_from_checkpoint", "auto", "--seed", "1"]),
        (["--resume=a/b"], ["--resume_from_checkpoint=a/b"]),
        (
            ["--model", "m", "--resume_from_checkpoint", "x"],
            ["--model_name_or_path", "m", "--resume_from_checkpoint", "x"],
        ),
    ],
)
def test_short_forms_stand_for_flags_of_trl(given, want):
    assert short_forms(given) == want
