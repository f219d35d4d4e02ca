import json

import pytest

from segattn.bench.errors import BenchError
from segattn.bench.results import Results, Row, read_results, write_text

PROVENANCE = {"device": "a machine", "environment": {"torch": "2.13.0"}, "code": "abc", "commit": "1", "began": "now"}


def row(length=8, figures=None):
    figures = figures or {"causal": [1.0, 2.0, 4.0], "sliced": [1.5, 2.0, 8.0]}
    return Row({"length": length}, figures, ("causal",), {"sliced": 1e-7}, {"share": 0.5})


def results(path, **changes):
    return Results(path, "attention", {"quick": False}, {**PROVENANCE, **changes})


def test_ratios_are_taken_round_by_round():
    found = row().ratio("sliced", "causal")
    assert (found.median, found.low, found.high, found.rounds) == (1.5, 1.25, 1.75, 3)


def test_a_row_survives_the_file(tmp_path):
    path = tmp_path / "deep" / "attention.json"
    written = results(path)
    written.add(row())
    assert read_results(path).rows == [Row(**{**vars(row()), "bases": ["causal"]})]
    content = json.loads(path.read_text())
    assert content["finished"] is None
    assert content["rows"][0]["contestants"]["causal"] == {
        "median": 2.0, "low": 1.5, "high": 3.0, "rounds": [1.0, 2.0, 4.0],
    }  # fmt: skip
    assert content["rows"][0]["ratios"]["sliced / causal"]["median"] == 1.5
    written.finish()
    assert json.loads(path.read_text())["finished"]
    assert [file.name for file in path.parent.iterdir()] == ["attention.json"]


def test_reading_and_writing_again_changes_nothing(tmp_path):
    path = tmp_path / "attention.json"
    written = results(path)
    written.add(row(figures={"causal": [1 / 3, 2 / 7, 0.123456789], "sliced": [1 / 7, 1 / 9, 5 / 3]}))
    before = path.read_text()
    read_results(path).save()
    assert path.read_text() == before


def test_a_run_that_was_cut_off_goes_on(tmp_path):
    path = tmp_path / "attention.json"
    results(path).add(row())
    again = results(path, commit="2", began="later")
    assert "1 rows" in again.take_up()
    assert again.find({"length": 8}) is not None
    assert again.find({"length": 9}) is None
    assert again.provenance["began"] == "now"


@pytest.mark.parametrize(
    "changes", [{"code": "other"}, {"device": "another machine"}, {"environment": {"torch": "2.14.0"}}]
)
def test_rows_of_other_code_or_machines_are_not_mixed(tmp_path, changes):
    path = tmp_path / "attention.json"
    results(path).add(row())
    again = results(path, **changes)
    assert "measuring anew" in again.take_up()
    assert again.rows == []


def test_without_a_file_there_is_nothing_to_take_up(tmp_path):
    assert results(tmp_path / "attention.json").take_up() is None
    in_memory = results(None)
    in_memory.add(row())
    assert in_memory.take_up() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 3}', '{"rows": [{}]}'])
def test_what_is_no_result_file_is_refused_by_name(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(BenchError, match=r"other\.json cannot be read"):
        read_results(path)


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="cannot be written"):
        write_text(tmp_path / "file" / "results.json", "{}")
