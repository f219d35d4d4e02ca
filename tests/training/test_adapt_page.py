"""The page on conversion: its Python runs, its command has the flags that it names."""

import json
import re
import shlex

from typer.testing import CliRunner

from segattn.cli.main import app
from training.test_pages import blocks


def test_the_command_and_the_python_of_the_page_run(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"where is card {number}?"} for number in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [commands], [code] = blocks("adapt.md", "sh"), blocks("adapt.md", "python")
    convert, chat = (shlex.split(line.replace("smollm2", tiny))[1:] for line in commands.splitlines())
    small = ["--steps", "2", "--batch-size", "2", "--held-out", "2", "--max-new-tokens", "4"]
    result = CliRunner().invoke(app, convert + small)
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, [*chat, "--max-new-tokens", "3"], input="why?\n")
    assert result.exit_code == 0, result.output
    exec(compile(code.replace("smollm2-folder", tiny), "adapt.md", "exec"), {})
    assert re.search(r"^adapted, segments \d\.\d+$", capsys.readouterr().out, flags=re.MULTILINE)
