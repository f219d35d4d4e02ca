"""The eval command: tables, JSON, resuming, and the mask that a checkpoint asks for."""

import json

import pytest
from typer.testing import CliRunner

import segattn
from cli.tiny_chat import make_model, make_tokenizer
from segattn.cli import eval as eval_module
from segattn.cli.main import app
from segattn.data import load_samples
from segattn.evaluation import rank_choices

ROWS = [{"prompt": f"is {n} even?", "completion": ("yes", "no")[n % 2], "choices": ["yes", "no"]} for n in range(5)]


@pytest.fixture
def data(tmp_path):
    for task in ("one", "two"):
        (tmp_path / "tasks" / task).mkdir(parents=True)
        (tmp_path / "tasks" / task / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path / "tasks"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        return CliRunner().invoke(app, ["eval", *map(str, arguments)])

    return invoke


@pytest.mark.parametrize(
    ("kind", "asked", "attention", "policy", "said"),
    [
        ("merged", "auto", "segments", "turns", ""),
        ("merged", "causal", "causal", "turns", "was tuned with segments"),
        ("adapter", "auto", "segments", "turns", ""),
        ("causal", "auto", "causal", "causal", ""),
        ("causal", "segments", "segments", "turns", "was tuned causally"),
        ("base", "auto", "causal", "turns", "runs causally"),
        ("base", "segments", "segments", "turns", "never tuned with segments"),
        ("plain adapter", "auto", "causal", "turns", "runs causally"),
    ],
)
def test_a_checkpoint_runs_as_it_was_tuned_unless_told_otherwise(
    checkpoints, data, run, kind, asked, attention, policy, said
):
    result = run("--model", checkpoints / kind, "--data", data, "--attention", asked, "--json", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert said in result.stderr
    shown = json.loads(result.stdout)
    assert (shown["settings"]["attention"], shown["settings"]["policy"]) == (attention, policy)
    assert [(task["task"], task["samples"], task["chance"]) for task in shown["tasks"]] == [
        ("one", 5, 0.5),
        ("two", 5, 0.5),
    ]
    if "adapter" not in kind:  # the same weights in all of these
        segmenter = segattn.Segmenter.from_tokenizer(make_tokenizer())
        model = segattn.enable(make_model(), segmenter)
        want = rank_choices(model, segmenter, load_samples(data, "dev"), attention=attention)
        correct = sum(found.correct for found in want[:5]) / 5
        assert shown["tasks"][0]["accuracy"]["value"] == correct
        loss = sum(found.loss for found in want[:5]) / 5
        assert shown["tasks"][0]["loss"]["value"] == pytest.approx(loss, abs=1e-4)


def test_a_finished_run_is_shown_again_and_fresh_runs_anew(checkpoints, data, run, tmp_path, monkeypatch):
    arguments = ("--model", checkpoints / "merged", "--data", data, "--output", tmp_path / "deep" / "result.json")
    first = run(*arguments, "--limit", "2")
    assert first.exit_code == 0, first.output
    assert "accuracy" in first.stdout
    assert "average" in first.stdout
    rows = tmp_path / "deep" / "result.rows.jsonl"
    assert len(rows.read_text().splitlines()) == 1 + 4
    second = run(*arguments)
    assert second.exit_code == 0, second.output
    assert "5 of 10 samples" in second.stderr  # four were there
    assert len(rows.read_text().splitlines()) == 1 + 10
    assert json.loads((tmp_path / "deep" / "result.json").read_text())["tasks"][0]["samples"] == 5
    third = run(*arguments, "--json")
    assert "samples" not in third.stderr
    assert json.loads(third.stdout) == json.loads((tmp_path / "deep" / "result.json").read_text())
    clash = run(*arguments, "--attention", "causal")
    assert clash.exit_code == 2
    assert "holds results of another run (attention:" in clash.stderr
    fresh = run(*arguments, "--attention", "causal", "--fresh")
    assert fresh.exit_code == 0, fresh.output


def test_results_without_a_name_are_kept_apart_by_settings(checkpoints, data, run, tmp_path):
    for attention in ("segments", "causal"):
        assert run("--model", checkpoints / "merged", "--data", data, "--attention", attention).exit_code == 0
    assert len(list((tmp_path / "runs" / "eval").glob("merged-*.json"))) == 2


def test_missing_data_is_one_clear_line(checkpoints, run):
    result = run("--model", checkpoints / "merged", "--data", "none.jsonl")
    assert result.exit_code == 2
    assert "segattn: none.jsonl does not exist" in result.stderr


def test_the_limit_counts_per_task(data):
    samples = load_samples(data, "dev")
    assert [(s.task, s.id) for s in eval_module._limited(samples, 2)] == [
        ("one", "1"), ("one", "2"), ("two", "1"), ("two", "2"),
    ]  # fmt: skip
