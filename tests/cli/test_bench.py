import json

import pytest
from typer.testing import CliRunner

from segattn.bench import command
from segattn.bench.timing import Effort
from segattn.cli.main import app

SMALL = ("--quick", "--length", "40", "--heads", "2", "--kv-heads", "1", "--head-size", "8", "--dtype", "float32")


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    monkeypatch.setattr(command, "QUICK", Effort(0.0, least=1, most=1, warm_up=False))


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", *arguments])


def test_a_table_of_attention():
    result = bench(*SMALL, "--layout", "one 95 %")
    assert result.exit_code == 0, result.output
    assert "attention, forward, ms" in result.stdout
    assert "one 95 %" in result.stdout
    assert "sliced / bound" in result.stdout
    assert "too few rounds" in result.stdout
    assert "1 of 1: 40, one 95 %, forward" in result.stderr


def test_json_holds_rounds_ratios_and_provenance():
    content = json.loads(bench(*SMALL, "--backward", "--json").stdout)
    assert [row["cell"]["pass"] for row in content["rows"]] == ["forward", "forward and backward"]
    assert "sliced / bound" in content["rows"][0]["ratios"]
    assert content["rows"][1]["contestants"]["sliced"]["error"] < 1e-4
    assert content["provenance"]["environment"]["torch"]


def test_an_output_file_is_gone_on_with(tmp_path, monkeypatch):
    file = tmp_path / "bench.json"
    assert bench(*SMALL, "--output", str(file)).exit_code == 0
    first = json.loads(file.read_text())
    again = bench(*SMALL, "--length", "48", "--output", str(file))
    assert "1 rows of this code and machine" in again.stderr
    rows = json.loads(file.read_text())["rows"]
    assert rows[0] == first["rows"][0]
    assert [row["cell"]["length"] for row in rows] == [40, 48]
    bench(*SMALL, "--output", str(file), "--fresh")
    assert len(json.loads(file.read_text())["rows"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--length", "-5"], "the length is -5; expected 20 tokens or more"),
        (["--layout", "columns"], "the layout is 'columns'; expected one of"),
        (["--heads", "3", "--kv-heads", "2"], "expected 1 or more of each"),
        (["--kv-heads", "0"], "expected 1 or more of each"),
        (["--device", "tpu"], "the device is 'tpu'; expected cpu, cuda"),
        (["--dtype", "int4"], "the dtype is 'int4'; expected auto"),
        (["--quick", "--model", "./no/such/folder"], "there is no folder ./no/such/folder"),
    ],
)
def test_bad_input_is_a_message_and_exit_code_2(arguments, message):
    result = bench(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_the_help_shows_an_example():
    result = bench("--help")
    assert result.exit_code == 0
    assert "segattn bench --length 1024" in result.stdout


@pytest.mark.slow
def test_the_prefill_of_a_real_model(smollm2_path):
    result = bench(*SMALL, "--model", "smollm2")
    assert result.exit_code == 0, result.output
    assert "prefill of smollm2" in result.stdout
