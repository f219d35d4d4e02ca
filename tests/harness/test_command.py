"""`segattn lm-eval`: lm_eval's own command line with the model in it."""

import functools
import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from segattn.cli.main import app
from segattn.harness import SegmentLM
from segattn.harness.command import with_model


@pytest.mark.parametrize(
    ("given", "added"),
    [
        (["--tasks", "arc_easy"], True),
        (["run", "-t", "arc_easy", "-a", "pretrained=x"], True),
        (["--tasks", "arc_easy", "--model", "hf"], False),
        (["--model=hf", "--tasks", "arc_easy"], False),
        (["-M", "hf", "-t", "arc_easy"], False),
        (["ls", "tasks"], False),
        (["validate", "--tasks", "arc_easy"], False),
        (["run", "--help"], False),
        ([], False),
    ],
    ids=str,
)
def test_the_model_is_segattn_unless_another_is_named(given, added):
    assert with_model(given) == ([*given, "--model", "segattn"] if added else given)


@pytest.mark.parametrize(("content", "added"), [("model: hf\ntasks: [x]\n", False), ("tasks: [x]\n", True)])
def test_a_config_file_may_name_it(tmp_path, content, added):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    for given in (["--config", str(path)], [f"--config={path}"], ["-C", str(path)]):
        assert (with_model(given) != given) is added


@pytest.fixture
def arguments(saved, local_tasks, tmp_path):
    return f"""--model_args pretrained={saved / "base"},peft={saved / "adapter"} --device cpu --apply_chat_template
        --include_path {local_tasks} --tasks local_multiple_choice,local_generate_until --num_fewshot 1
        --fewshot_as_multiturn false --batch_size 2 --output_path {tmp_path / "results.json"} --limit 2""".split()


def results_in(folder, stdout):
    """The results file, which says how the model was run."""
    assert "|local_multiple_choice|" in stdout
    (file,) = folder.glob("results*.json")
    results = json.loads(file.read_text())
    config = results["config"]
    assert (config["model"], config["attention"], config["segment_policy"]) == ("segattn", "segments", "turns")
    assert config["segments_as_tuned"] is True
    assert config["segattn_version"]
    return results


def test_from_arguments_to_the_results_file(arguments, tmp_path, monkeypatch):
    from lm_eval.tasks import TaskManager

    # Its own tasks are thousands of files.
    begin = functools.partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", begin)
    result = CliRunner().invoke(app, ["lm-eval", *arguments])
    assert result.exit_code == 0, result.output
    results_in(tmp_path, result.stdout)


@pytest.mark.slow
def test_the_same_in_a_process_of_its_own(arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "segattn", "lm-eval", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    results = results_in(tmp_path, done.stdout)
    assert results["lm_eval_version"]
    assert results["transformers_version"]


def test_help_has_an_example_and_names_the_arguments():
    result = CliRunner().invoke(app, ["lm-eval", "--help"])
    assert result.exit_code == 0, result.output
    assert "segattn lm-eval" in result.output.split("Example")[1]
    assert "plain_context" in result.output


def test_nothing_to_do_is_said():
    result = CliRunner().invoke(app, ["lm-eval"])
    assert result.exit_code == 2
    assert "--tasks" in result.stderr


def test_a_mistake_is_one_line(monkeypatch):
    seen = []

    def cli_evaluate():
        seen.append(sys.argv)
        SegmentLM("nowhere", attention="foo")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", cli_evaluate)
    before = sys.argv
    result = CliRunner().invoke(app, ["lm-eval", "--tasks", "x", "-b", "auto:2"])
    assert result.exit_code == 2
    assert result.stderr == "segattn: attention is 'foo'; expected one of auto, segments, causal\n"
    assert seen == [["lm_eval", "--tasks", "x", "-b", "auto:2", "--model", "segattn"]]
    assert sys.argv is before
