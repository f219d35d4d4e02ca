"""What docs/lm-eval.md shows must run: its files and its command, on the real model."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segattn.cli.main import app

PAGE = (Path(__file__).parents[2] / "docs" / "lm-eval.md").read_text(encoding="utf-8")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that the page shows, in the folder where the command is called."""
    (tmp_path / "tasks").mkdir()
    shown = re.findall(r"^`(tasks/\S+)`\n\n```\w+\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert [name for name, _ in shown] == ["tasks/rooms.jsonl", "tasks/rooms.yaml", "tasks/rooms_answer.yaml"]
    for name, content in shown:
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.mark.slow
def test_the_command(files, smollm2_path):
    (command,) = re.findall(r"^```sh\n(.*?)```", PAGE, flags=re.DOTALL | re.MULTILINE)
    name, *arguments = shlex.split(command)
    assert name == "segattn"
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert {"|rooms       |", "|rooms_answer|"} <= set(re.findall(r"\|rooms\w* *\|", result.stdout))


@pytest.mark.slow
def test_the_lines_of_python(files, smollm2_path, capsys):
    (code,) = re.findall(r"^```python\n(.*?)```", PAGE, flags=re.DOTALL | re.MULTILINE)
    exec(compile(code, "lm-eval.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == "1.0 segments"
