"""The benchmark runs; what it measures is not asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "enable_cost.py"


@pytest.mark.slow
def test_the_quick_form_runs_and_writes_its_figures(smollm2_path, tmp_path):
    output = tmp_path / "enable_cost.json"
    subprocess.run([sys.executable, str(SCRIPT), "--quick", "--output", str(output)], check=True)
    figures = json.loads(output.read_text())
    assert figures["decoding"]["ratio"] > 0
    assert set(figures["switching"]) == {"enable and disable", "probe", "probe, per layer"}
