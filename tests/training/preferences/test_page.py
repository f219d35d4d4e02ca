"""The page on preferences and the example scripts: their Python runs, their commands have the flags they name."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

import segattn
from cli.tiny_chat import save_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # as on any machine without a GPU
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(save_checkpoint(tmp_path_factory.mktemp("tiny") / "base"))


def test_the_python_of_the_page_runs(tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "preferences.md").read_text()
    blocks, names = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL), {}
    assert len(blocks) == 3
    for code in blocks:
        exec(compile(code.replace("smollm2-folder", tiny), "preferences.md", "exec"), names)
    assert segattn.is_enabled(names["model"])
    assert segattn.is_enabled(names["judge"])


@pytest.mark.parametrize("script", ["dpo.py", "grpo.py"])
def test_the_examples_run(script, tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = ROOT / "examples" / "preferences" / script
    usage = next(line for line in path.read_text().splitlines() if line.strip().startswith("python examples"))
    arguments = shlex.split(usage)[2:]
    if "--pairs" in arguments:
        del arguments[arguments.index("--pairs") : arguments.index("--pairs") + 2]
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--model", tiny, "--steps", "1"])
    runpy.run_path(str(path), run_name="__main__")
    folder = arguments[arguments.index("--output-dir") + 1]
    loaded, _ = segattn.from_pretrained(tmp_path / folder)
    assert segattn.is_enabled(loaded)
