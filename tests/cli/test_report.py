import json

from typer.testing import CliRunner

from evaluation.results import made_up_results
from reproduction.made_up_cells import made_up_sweep, write_cells
from segattn.cli.main import app


def run(*arguments):
    return CliRunner().invoke(app, ["report", *(str(argument) for argument in arguments)])


def test_sweeps_become_one_page_and_other_runs_a_page_each(tmp_path):
    contents = made_up_sweep(items=20)
    first = write_cells(tmp_path / "first", contents[:4])
    second = write_cells(tmp_path / "second", contents[4:])
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "results.json").write_text(json.dumps(made_up_results()))
    result = run(first, tmp_path / "demo", second)
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(first / "report.html"), str(tmp_path / "demo" / "report.html")]
    assert "2 reports written" in result.stderr
    assert not (second / "report.html").exists()
    assert "7 cells, 3 arms, 3 seeds" in (first / "report.html").read_text()
    assert run(first, second, tmp_path / "demo", "--output", tmp_path / "one.html").exit_code == 2
    assert run(first, second, "--output", tmp_path / "one.html").exit_code == 0


def test_json_holds_findings_and_tables_of_every_kind_of_run(tmp_path):
    sweep = write_cells(tmp_path / "sweep", made_up_sweep(items=40))
    (sweep / "cells" / "half.json").write_text("{")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "results.json").write_text(json.dumps(made_up_results()))
    (tmp_path / "train").mkdir()
    trained = {"result": {"steps": 2, "train_losses": [[1, 2.0], [2, 1.0]], "curve": [{"step": 2, "loss": 1.5}]}}
    (tmp_path / "train" / "training_result.json").write_text(json.dumps(trained))
    result = run(sweep, tmp_path / "demo", tmp_path / "train", "--json", "--edges", "50,100")
    assert result.exit_code == 0, result.output
    of_sweep, of_demo, of_train = json.loads(result.stdout)["reports"]
    assert of_sweep["page"] == str(sweep / "report.html")
    assert {row["to"] for row in of_sweep["tables"]["strata"]} == {50, 100, None}
    assert of_sweep["findings"][0].startswith("Segments against causal training")
    assert "half.json was left out" in of_sweep["notes"][0]
    assert "half.json was left out" in result.stderr
    assert of_demo["tables"]["comparisons"][0]["samples"] == 2
    assert of_train["findings"][0] == "Held-out answer loss: 1.5000 at step 2."


def test_what_is_wrong_is_a_message(tmp_path):
    empty = tmp_path / "empty"
    (empty / "cells").mkdir(parents=True)
    result = run(empty)
    assert result.exit_code == 2
    assert "segattn reproduce" in result.stderr
    sweep = write_cells(tmp_path / "sweep", made_up_sweep(items=20))
    assert "64,128,256" in run(sweep, "--edges", "a,b").stderr
    assert "rising numbers" in run(sweep, "--edges", "9,3").stderr
    assert not (sweep / "report.html").exists()


def test_a_folder_with_a_result_and_an_empty_place_for_cells_is_no_sweep(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "results.json").write_text(json.dumps(made_up_results()))
    assert run(tmp_path).stdout.strip() == str(tmp_path / "report.html")


def test_help_shows_an_example():
    assert "segattn report runs/sweep" in run("--help").stdout
