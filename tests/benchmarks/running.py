"""Running what lies in benchmarks/, as a user would."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def script(name, *arguments, code=0):
    """Run a script; return what it printed for the user."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == code, done.stderr
    return done.stderr


def figures(folder, claim):
    """The rows that a script wrote."""
    (file,) = folder.glob(f"*/{claim}.json")
    content = json.loads(file.read_text())
    assert content["finished"]
    assert file.with_suffix(".png").stat().st_size > 1000
    return content["rows"]
