"""The adapt command: its flags are the settings, its result is a model to chat with, its refusals are one line."""

import inspect
import json
import os
import signal
from dataclasses import fields

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from segattn.cli import adapt as module
from segattn.cli.main import app
from segattn.training import SegmentSFTTrainer
from segattn.training.adapt_settings import AdaptSettings

QUICK = ("--steps", 2, "--batch-size", 2, "--held-out", 2, "--max-new-tokens", 4, "--lora-r", 2, "--dtype", "float32")


def run(*arguments, command="adapt", **options):
    return CliRunner().invoke(app, [command, *map(str, arguments)], **options)


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"where is card {number}?"} for number in range(5)]
    rows.append({"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_every_setting_is_a_flag_with_its_default_in_either_spelling():
    group = get_command(app)
    _, command, _ = group.resolve_command(group.make_context("segattn", ["adapt"], resilient_parsing=True), ["adapt"])
    parameters = {parameter.name: parameter for parameter in command.params}
    for one in fields(AdaptSettings):
        flag = parameters.pop(one.name)
        assert flag.default == one.default, one.name
        assert {f"--{one.name}", f"--{one.name.replace('_', '-')}"} <= set(flag.opts)
        assert flag.help
    assert {*parameters} - {"help"} == {"resume", "as_json"}
    assert list(inspect.signature(module.command).parameters)[:-2] == [one.name for one in fields(AdaptSettings)]


def test_help_has_an_example():
    result = run("--help", env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "segattn adapt --model smollm2 --prompts prompts.jsonl" in result.output


def test_a_converted_model_is_one_to_talk_to(checkpoints, prompts, tmp_path):
    out = tmp_path / "out"
    flags = ("--model", checkpoints / "base", "--prompts", prompts, "--output_dir", out, "--compare-sft")
    result = run(*flags, *QUICK, "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)  # log lines go to stderr
    assert shown["steps"] == 2
    assert shown["prompts"] == 4
    assert shown["report"]["students"]["base, causal"]["exact"]["value"] == 1.0
    assert set(shown["report"]["comparisons"]) == {
        "adapted, segments - base, segments",
        "adapted, causal - base, causal",
        "adapted, segments - sft, segments",
    }
    content = json.loads((out / "adapt_result.json").read_text())
    assert content["report"] == shown.pop("report")
    assert content["result"] == shown
    answer = run("--model", out, "--json", "why?", command="generate")
    assert answer.exit_code == 0, answer.output
    assert "answers: 6 of 6" in result.stderr


def test_plain_output_has_the_table_and_the_size(checkpoints, tmp_path):
    """Without --prompts, on the built-in ones."""
    out = tmp_path / "out"
    result = run("--model", checkpoints / "base", "--output-dir", out, *QUICK)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("held-out KL after step 0: ")
    assert any("adapted, segments" in line for line in lines)
    assert lines[-2].startswith("adapter: 0.0")
    assert lines[-1] == str(out)


def test_a_stopped_run_says_so_is_no_success_and_goes_on(checkpoints, prompts, tmp_path, monkeypatch):
    training_step = SegmentSFTTrainer.training_step

    def press_ctrl_c(self, *arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return training_step(self, *arguments, **options)

    monkeypatch.setattr(SegmentSFTTrainer, "training_step", press_ctrl_c)
    flags = ("--model", checkpoints / "base", "--prompts", prompts, "--output-dir", tmp_path / "out", *QUICK)
    result = run(*flags)
    assert result.exit_code == 130
    assert "stopped early: 1 steps" in result.stdout
    monkeypatch.undo()
    result = run(*flags, "--resume")
    assert result.exit_code == 0, result.output
    assert "2 steps on 4 prompts" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "none.jsonl"], "none.jsonl does not exist"),
        (["--steps", "3", "--opening-steps", "4"], "opening_steps is 4 and steps 3"),
        (["--resume"], "holds no run to go on with"),
        (["--max-length", "9000"], "holds 2048 tokens"),
    ],
)
def test_what_cannot_be_run_is_one_clear_line(checkpoints, tmp_path, arguments, message):
    result = run("--model", checkpoints / "base", "--output-dir", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    [line] = [line for line in result.stderr.splitlines() if line.startswith("segattn: ")]
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["merged", "adapter", "plain adapter"])
def test_tuned_checkpoints_are_no_teachers(checkpoints, tmp_path, kind):
    result = run("--model", checkpoints / kind, "--output-dir", tmp_path / "out", *QUICK)
    assert result.exit_code == 2
    assert ("is an adapter" if kind == "plain adapter" else "was tuned with segments already") in result.stderr
