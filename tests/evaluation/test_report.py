import re
import shlex
from html.parser import HTMLParser

import pytest

from evaluation.results import made_up_results
from segattn.evaluation.report import ReportError, findings, write_report


class Page(HTMLParser):
    """Collects what a reader would see, and what a browser would load."""

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.tags, self.loads, self.texts = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "link", "br", "use", "path", "rect"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("#", "data:")):
                self.loads.append(value)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        data = data.replace("\N{NO-BREAK SPACE}", " ")
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


@pytest.fixture
def page(tmp_path):
    parsed = Page()
    parsed.source = write_report(made_up_results(), tmp_path / "report.html").read_text()
    parsed.feed(parsed.source)
    return parsed


def test_the_tables_hold_the_figures(page):
    assert page.cells.count("0.875 (0.825 to 0.925)") == 3
    assert "+0.010 (-0.040 to +0.060)" in page.cells
    assert "no difference shown" in page.cells
    assert "0.0625" in page.cells
    assert "0.339" in page.cells


def test_findings_say_what_is_shown_and_what_is_not(page):
    text = " ".join(page.texts)
    arms = "[tuned segments, run segments] against [tuned causal, run causal]"
    assert f"Accuracy, {arms}: no difference shown, +0.010 (-0.040 to +0.060)." in text
    # A lower loss is better: first minus second is negative.
    assert "Loss, [tuned causal, run causal] against [tuned causal, run segments]: better by -0.400" in text


def test_the_page_loads_nothing_from_elsewhere(page):
    assert page.loads == []
    assert not re.search(r"@import|url\((?!#)", page.source)
    assert page.tags.count("svg") == 3


def test_data_is_escaped_everywhere(page):
    assert "script" not in page.tags
    assert "<script>alert" not in page.source


def test_light_dark_and_print(page):
    assert "prefers-color-scheme: dark" in page.source
    assert "@media print" in page.source
    assert "currentColor" in page.source


def test_every_table_says_what_it_is(page):
    assert page.tags.count("caption") == page.tags.count("table")


def test_unfinished_results_are_refused_and_keep_the_old_page(tmp_path):
    write_report(made_up_results(), tmp_path / "report.html")
    before = (tmp_path / "report.html").read_text()
    unfinished = made_up_results()
    del unfinished["comparisons"]
    with pytest.raises(ReportError, match="lack comparisons"):
        write_report(unfinished, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_data_of_ones_own_has_no_baselines(tmp_path):
    results = made_up_results()
    del results["baselines"]
    results["settings"] = {**results["settings"], "data": "some/where/banking77"}
    text = write_report(results, tmp_path / "report.html").read_text()
    assert "smollm2, banking77, 20 steps" in text
    assert "position of an answer" not in text


def test_the_command_gives_the_same_settings_again(tmp_path):
    results = made_up_results()
    results["settings"] = {**results["settings"], "data": "my data/set"}
    page = Page()
    page.feed(write_report(results, tmp_path / "report.html").read_text())
    command = next(text for text in page.texts if text.startswith("segattn demo"))
    words = shlex.split(command)[2:]
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "--model": "smollm2", "--data": "my data/set", "--difficulty": "easy", "--steps": "20", "--batch-size": "2",
        "--opening-steps": "10", "--samples": "2", "--seed": "3",
    }  # fmt: skip


def test_small_losses_keep_their_digits(tmp_path):
    results = made_up_results()
    results["matrix"]["causal"]["causal"]["loss"] = {"value": 0.00031, "low": 0.00018, "high": 0.00052}
    results["comparisons"][1]["difference"] = {"value": 0.0008, "low": 0.0002, "high": 0.0016}
    page = Page()
    page.feed(write_report(results, tmp_path / "report.html").read_text())
    assert "0.0003 (0.0002 to 0.0005)" in page.cells
    assert "+0.0008 (+0.0002 to +0.0016)" in page.cells


def test_an_interval_without_width_is_not_sold_as_certainty():
    results = made_up_results()
    assert not any("no width" in line for line in findings(results))
    results["comparisons"][0].update(difference={"value": 0.0, "low": 0.0, "high": 0.0}, samples=120, p_value=1.0)
    line = findings(results)[0]
    assert "no difference shown" in line
    assert "same 120 samples" in line
    assert "up to about 2.5 %" in line  # 3 / 120
    # One right everywhere, the other nowhere: no width either, and quite another story.
    results["comparisons"][0].update(difference={"value": 1.0, "low": 1.0, "high": 1.0}, shown=True)
    assert "no width" not in findings(results)[0]
