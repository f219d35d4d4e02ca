"""What the README shows must run."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_the_ten_lines_of_python_run(smollm2_path, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert f'"{HUB_ID}"' in code
    exec(compile(code.replace(HUB_ID, str(smollm2_path)), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    # SmolLM2's template adds a system prompt: two segments, then the causal generation prompt.
    assert "0,  0," in printed
    assert "1,  1," in printed
    assert re.search(r"-1(, +-1)*\]", printed)
    assert "Where is Anna?" in printed


@pytest.mark.parametrize("line", re.findall(r"^    (segattn .*?)(?: +#.*)?$", README, flags=re.MULTILINE))
def test_the_commands_exist_with_these_options(line):
    from typer.main import get_command

    from segattn.cli.main import app

    name, *rest = line.split()[1:]
    group = get_command(app)
    _, command, _ = group.resolve_command(group.make_context("segattn", [name], resilient_parsing=True), [name])
    if name == "train":  # TRL reads its flags
        from trl import TrlParser

        from segattn.training import ModelSettings, SFTSettings, TrainSettings

        parser = TrlParser((TrainSettings, SFTSettings, ModelSettings))
        known = {flag for action in parser._actions for flag in action.option_strings} | {"--model"}
    else:
        known = {flag for parameter in command.params for flag in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= known


def test_its_links_and_pictures_are_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (Path(__file__).parents[1] / target).is_file(), target
