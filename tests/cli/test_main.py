import json
import os
import re
import subprocess
import sys
import types

import pytest
import typer
from typer.testing import CliRunner

from segattn.cli import main as cli
from segattn.errors import SegmentError
from segattn.pretrained.environment import requirements

HEAVY = {"torch", "transformers", "peft", "trl", "datasets", "matplotlib", "huggingface_hub"}


def run(*arguments, **options):
    return CliRunner().invoke(cli.app, list(arguments), prog_name="segattn", **options)


def modules_after(*arguments, blocked=()):
    """Run the command line in a fresh process; returns the modules it imported, its output and its exit code."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(blocked)!r}))
sys.argv = ['segattn', *{list(arguments)!r}]
from segattn.cli.main import main
code = 0
try:
    main()
except SystemExit as end:
    code = end.code
import json
print(json.dumps([sorted(sys.modules), code]))
"""
    online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=online)
    *lines, last = done.stdout.splitlines()
    modules, exit_code = json.loads(last)
    return {name for name in modules if name not in blocked}, "\n".join(lines) + done.stderr, exit_code


@pytest.fixture
def command(monkeypatch):
    """Put a command of the test's own into the table, under the name "train"."""

    def install(function, **attributes):
        module = types.ModuleType("segattn.cli.train")
        module.command = function
        for name, value in attributes.items():
            setattr(module, name, value)
        monkeypatch.setitem(sys.modules, "segattn.cli.train", module)

    return install


def test_help_lists_every_command_and_imports_none_of_them():
    modules, output, code = modules_after("--help")
    assert code == 0
    for name, (module, _) in cli.COMMANDS.items():
        assert re.search(rf"^│ {name} ", output, re.MULTILINE)
        assert module not in modules
    assert not modules & HEAVY


def test_the_version_is_quick():
    modules, output, code = modules_after("--version")
    assert (output.strip(), code) == (f"segattn {cli.__version__}", 0)
    assert not modules & HEAVY


def test_doctor_works_with_torch_and_typer_alone():
    blocked = HEAVY - {"torch"} | {"gguf", "accelerate", "safetensors", "jinja2"}
    modules, output, _ = modules_after("doctor", blocked=blocked)
    assert "Traceback" not in output
    assert re.search(r"^torch +\d", output, re.MULTILINE)
    assert "pip install 'segattn[cli]'" in output
    assert not modules & blocked


def test_without_typer_the_message_names_the_extra():
    code = "import sys; sys.modules['typer'] = None; import segattn.cli.main"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "The segattn command needs typer. Run: pip install 'segattn[cli]'\n"


@pytest.mark.parametrize("name", ["fetch", "doctor", "generate", "chat", "inspect"])
def test_every_command_has_help_with_an_example(name):
    result = run(name, "--help")
    assert result.exit_code == 0, result.output
    assert f"segattn {name}" in result.output.split("Example")[1]


def test_a_misspelt_command_is_answered_with_a_suggestion():
    result = run("doctr")
    assert result.exit_code == 2
    assert "Did you mean 'doctor'?" in result.output


def test_errors_of_this_package_are_messages_with_exit_code_2(command):
    def fail():
        raise SegmentError("three rows for a batch of two")

    command(fail)
    result = run("train")
    assert result.exit_code == 2
    assert result.stderr == "segattn: three rows for a batch of two\n"
    assert result.stdout == ""


def test_the_traceback_can_be_had(command, monkeypatch):
    def fail():
        raise SegmentError("three rows for a batch of two")

    command(fail)
    monkeypatch.setenv("SEGATTN_TRACEBACK", "1")
    assert isinstance(run("train").exception, SegmentError)


@pytest.mark.parametrize(("module", "extra"), [("trl", "train"), ("matplotlib", "viz"), ("transformers", "cli")])
def test_a_missing_package_is_answered_with_the_extra_that_brings_it(command, module, extra):
    assert module in {name for name, _ in requirements()[extra]} | {"transformers"}

    def fail():
        raise ModuleNotFoundError(f"No module named '{module}.x'", name=f"{module}.x")

    command(fail)
    result = run("train")
    assert result.exit_code == 2
    assert f"needs {module}" in result.stderr
    assert f"pip install 'segattn[{extra}]'" in result.stderr


def test_a_defect_of_ours_keeps_its_traceback(command):
    def fail():
        raise ModuleNotFoundError("No module named 'segattn.nowhere'", name="segattn.nowhere")

    command(fail)
    assert isinstance(run("train").exception, ModuleNotFoundError)


def test_a_command_can_take_foreign_options_and_bring_its_own_help(command):
    def passes_on(context: typer.Context):
        """Not shown."""
        print(context.args)

    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    command(passes_on, CONTEXT_SETTINGS=settings, COMMAND_HELP="Takes segattn[train] and TRL's flags.")
    assert run("train", "--learning_rate", "1e-3", "--bf16").stdout == "['--learning_rate', '1e-3', '--bf16']\n"
    result = run("train", "--help")
    assert "Takes segattn[train] and TRL's flags." in result.output
    assert "Not shown" not in result.output
