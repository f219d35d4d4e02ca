"""The reproductions in docs/upstream must run, whether or not the defect is still there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

UPSTREAM = Path(__file__).parents[1] / "docs" / "upstream"
SCRIPTS = sorted(path.name for path in UPSTREAM.glob("*.py"))
# One process for all of them: importing transformers takes longer than the scripts do.
RUN_ALL = """
import contextlib, io, json, runpy, sys, traceback

results = {}
for path in sys.argv[1:]:
    printed = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(printed):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            code = traceback.format_exc()
    results[path] = [code, printed.getvalue()]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results():
    paths = [str(UPSTREAM / name) for name in SCRIPTS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, *paths], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    return {Path(path).name: result for path, result in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_reproduction_runs_and_says_what_it_saw(name, results):
    code, printed = results[name]
    lines = printed.splitlines()
    assert code in (0, 1), code
    assert sum(line.startswith("expected: ") for line in lines) == 1
    assert any(line.startswith("observed: ") for line in lines)
    assert lines[-1] == ("defect present" if code else "defect absent")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_reproduction_is_listed_and_stands_alone(name):
    assert f"]({name})" in (UPSTREAM / "README.md").read_text(encoding="utf-8")
    code = (UPSTREAM / name).read_text(encoding="utf-8")
    imported = {line.split()[1].split(".")[0] for line in code.splitlines() if line.startswith(("import ", "from "))}
    assert imported <= {"sys", "torch", "transformers"}


def test_there_are_reproductions():
    assert len(SCRIPTS) >= 4
