import json

from typer.testing import CliRunner

from evaluation.results import made_up_results
from segattn.cli.main import app


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_report_is_written_again_from_its_results(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(made_up_results()))
    result = run("report", tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "report.html")
    assert "0.875" in (tmp_path / "report.html").read_text()


def test_what_cannot_be_reported_is_a_message(tmp_path):
    for content in (None, "{", "[]", "{}"):
        if content is not None:
            (tmp_path / "results.json").write_text(content)
        result = run("report", tmp_path)
        assert result.exit_code == 2
        assert "segattn demo" in result.stderr
    assert run("report", tmp_path, tmp_path, "--output", tmp_path / "a.html").exit_code == 2


def test_demo_refuses_settings_that_make_no_sense(tmp_path):
    result = run("demo", "--difficulty", "impossible", "--output", tmp_path)
    assert result.exit_code == 2
    assert "expected one of easy, medium, hard" in result.stderr
    assert run("demo", "--steps", "4", "--opening-steps", "9", "--output", tmp_path).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_demo_prints_the_matrix_and_writes_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr("segattn.demo.experiment.run_experiment", lambda *a, **k: made_up_results())
    result = run("demo", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert "tuned with segments" in result.stdout
    assert "no difference shown" in result.stdout
    assert (tmp_path / "report.html").is_file()
    as_json = run("demo", "--output", tmp_path, "--json")
    assert json.loads(as_json.stdout)["chance"] == 0.167
