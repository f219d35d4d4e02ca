"""The examples of docs/templates.md run, in order."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "templates.md"


def test_every_example_runs(smollm2_path, capsys):
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 3
    names = {}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)  # the page is ours
    assert "<|im_start|>assistant" in capsys.readouterr().out
