import json
import re

import pytest

from evaluation.test_report import Page
from reproduction.made_up_cells import made_up_sweep, write_cells
from segattn.reports.numbers import interval_text
from segattn.reproduction.report import report_sweeps


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    contents = made_up_sweep(
        {"segments": 0.0, "<script>alert(1)</script>": 0.8}, data=("banking77", "other"),
        scorings=("likelihood", "generation"), max_length=100, items=60,
    )  # fmt: skip
    for number, content in enumerate(contents):
        (folder / "cells").mkdir(exist_ok=True)
        (folder / "cells" / f"{number}.json").write_text(json.dumps(content))
    (folder / "cells" / "half.json").write_text('{"names"')
    result = report_sweeps([folder], folder / "report.html")
    page = Page()
    page.source = (folder / "report.html").read_text()
    page.feed(page.source)
    return result, page


def test_the_tables_hold_the_numbers_of_the_summary(sweep):
    result, page = sweep
    tables = result["tables"]
    for row in tables["accuracies"]:
        assert interval_text(row["accuracy"]) in page.cells
    for row in tables["differences"]:
        assert interval_text(row["difference"], sign="+") in page.cells
        assert f"{row['detectable']:.3f}" in page.cells
    for row in tables["mismatch"]:
        assert interval_text(row["segments"]) in page.cells
    for row in tables["strata"]:
        assert any(interval_text(row["arms"]["segments"]["difference"], sign="+") in cell for cell in page.cells)
    for row in tables["shares_ahead"]:
        assert f"{row['most']:.3f}" in page.cells
    assert {"banking77", "other"} == {row["data"] for row in tables["accuracies"]}


def test_findings_and_notes_are_on_the_page(sweep):
    result, page = sweep
    texts = [text.strip() for text in page.texts]
    for line in [*result["findings"], *result["notes"]]:
        assert line in texts
    assert "half.json was left out" in result["notes"][0]


def test_the_page_loads_nothing_and_escapes_everything(sweep):
    _, page = sweep
    assert page.loads == []
    assert not re.search(r"@import|url\((?!#)", page.source)
    assert "script" not in page.tags
    assert "<script>alert" not in page.source


def test_every_table_says_what_it_is_and_every_picture_too(sweep):
    _, page = sweep
    assert page.tags.count("caption") == page.tags.count("table")
    # 2 data sets: mismatch and strata for each scoring, two curves, shares and maps.
    assert page.tags.count("svg") == 2 * (2 + 2 + 2 + 1 + 1)
    assert page.tags.count("figcaption") == page.tags.count("svg")
    assert page.source.count('role="img"') == page.tags.count("svg")


def test_all_sections_are_there(sweep):
    _, page = sweep
    for heading in (
        "What came out", "Accuracy", "Trained one way, run the other", "Held-out answer loss, nats per token",
        "Accuracy during training", "Length of the prompt", "Likelihood and generation", "Attention to keys ahead",
        "The attention of one prompt", "Settings", "Machine, versions and time",
    ):  # fmt: skip
        assert heading in page.texts


def test_light_dark_and_print(sweep):
    _, page = sweep
    assert "prefers-color-scheme: dark" in page.source
    assert "@media print" in page.source
    assert "size: landscape" in page.source


def test_several_runs_become_one_page(tmp_path):
    contents = made_up_sweep(items=20)
    first = write_cells(tmp_path / "a", [one for one in contents if one["names"]["seed"] == 0])
    second = write_cells(tmp_path / "b", [one for one in contents if one["names"]["seed"] != 0])
    together = report_sweeps([first, second], tmp_path / "page.html")
    whole = report_sweeps([write_cells(tmp_path / "c", contents)], tmp_path / "whole.html")
    assert together["notes"] == []
    for name in ("differences", "mismatch", "strata"):
        assert together["tables"][name] == whole["tables"][name]


def test_the_least_there_can_be_is_a_page(tmp_path):
    content = made_up_sweep({"segments": 0.0}, seeds=(0,), items=5)[2]
    content |= {"training": {"steps": 3}, "attention_pattern": None, "environment": {}, "seconds": None}
    content["evaluations"] = [{**content["evaluations"][1], "losses": None, "chance": None, "seconds": None}]
    report_sweeps([write_cells(tmp_path, [content])], tmp_path / "report.html")
    assert "No arm can be compared" in (tmp_path / "report.html").read_text()
    assert [file.name for file in tmp_path.iterdir() if file.suffix] == ["report.html"]
