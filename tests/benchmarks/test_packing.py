"""The benchmark of packed training runs; what it measures is not asserted, what it counts is."""

import json

import pytest

from benchmarks.running import script


def test_without_data_it_says_so(tmp_path):
    assert "is not here, nothing is measured" in script("packing", "--data", tmp_path / "none")


@pytest.mark.slow
def test_the_quick_form_runs_and_counts_padding(smollm2_path, tmp_path):
    data = tmp_path / "intents.jsonl"
    rows = [{"text": f"where is card {'x' * (n % 9)}", "intent": f"card_{n % 3}"} for n in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "useful tokens per second" in script("packing", "--data", data, "--quick", "--output", tmp_path / "out")
    (file,) = (tmp_path / "out").glob("packing-*.json")
    content = json.loads(file.read_text())
    assert content["finished"]
    assert [row["cell"]["arm"] for row in content["rows"]] == ["segments", "causal"]
    for row in content["rows"]:
        assert row["facts"]["padding"]["packed"] == row["facts"]["padding"]["padding-free"] == 0
        assert row["facts"]["padding"]["padded"] > 0
        assert row["ratios"]["packed / padded"]["median"] > 0
