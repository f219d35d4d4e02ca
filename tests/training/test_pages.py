"""The pages on training and evaluation: their Python runs, their commands have the flags they name."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segattn.cli.main import app

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a small data/banking77."""
    folder = tmp_path / "data" / "banking77"
    folder.mkdir(parents=True)
    rows = [{"text": f"where is card {n}", "intent": f"card_{n % 3}"} for n in range(6)]
    for split in ("train", "dev"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_and_the_python_of_both_pages_run(place, tiny, capsys):
    for page in ("training.md", "evaluation.md"):
        [commands], codes = blocks(page, "sh"), blocks(page, "python")
        for line in commands.splitlines():
            arguments = shlex.split(line.replace("smollm2", tiny).replace("--max_steps 200", "--max_steps 2"))[1:]
            small = ["--lora_r", "2", "--bf16", "false"] if arguments[0] == "train" else []
            result = CliRunner().invoke(app, arguments + small)
            assert result.exit_code == 0, result.output
        for code in codes:
            exec(compile(code.replace("smollm2-folder", tiny), page, "exec"), {})
    shown = capsys.readouterr().out
    assert re.search(r"^0 \d\.\d+$", shown, flags=re.MULTILINE)
    assert re.search(
        r"^-?\d\.\d+ \[-?\d\.\d+, -?\d\.\d+\] (no difference shown|the (first|second) is higher)$", shown, re.M
    )
