"""The table of docs/adapt.md is what the rows of the run say."""

import json
import re
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).parents[2]
RUN = json.loads((ROOT / "studies" / "adapt" / "smollm2.json").read_text())["result"]


@pytest.mark.parametrize("student", RUN["held_out"])
def test_the_means_of_each_student(student):
    lines = (ROOT / "docs" / "adapt.md").read_text().splitlines()
    line = next(line for line in lines if line.startswith(("| " + student, "| **" + student)) and line.count("|") == 6)
    shown = [float(re.findall(r"\d\.\d{3}", column)[0]) for column in line.split("|")[2:6]]
    rows = RUN["held_out"][student]
    assert shown == [round(fmean(row[name] for row in rows), 3) for name in ("kl", "top1", "exact", "prefix")]
