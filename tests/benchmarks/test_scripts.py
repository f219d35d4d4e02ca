"""The benchmarks run; what they measure is not asserted."""

import pytest

from benchmarks.running import figures, script


def test_attention_runs_is_taken_up_and_becomes_a_page(tmp_path):
    script("attention", "--quick", "--output", tmp_path)
    rows = figures(tmp_path, "attention")
    assert {row["cell"]["pass"] for row in rows} == {"forward", "forward and backward"}
    assert all(row["ratios"]["sliced / bound"]["median"] > 0 for row in rows)
    page = tmp_path / "page.md"
    script("page", "--results", tmp_path, "--page", page)
    assert "Figures of a smoke test" in page.read_text()
    assert "| ten turns | 64 |" in page.read_text()


@pytest.mark.slow
def test_a_finished_benchmark_is_not_measured_again(tmp_path):
    script("attention", "--quick", "--output", tmp_path)
    before = figures(tmp_path, "attention")
    assert f"{len(before)} rows of this code and machine" in script("attention", "--quick", "--output", tmp_path)
    assert figures(tmp_path, "attention") == before
    script("attention", "--quick", "--fresh", "--output", tmp_path)
    assert figures(tmp_path, "attention") != before


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["thresholds", "memory"])
def test_what_needs_no_real_model_runs(claim, tmp_path):
    script(claim, "--quick", "--output", tmp_path)
    assert figures(tmp_path, claim)


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["decoding", "training_step", "first_token"])
def test_what_needs_the_real_model_runs(claim, smollm2_path, tmp_path):
    script(claim, "--quick", "--output", tmp_path)
    assert figures(tmp_path, claim)


@pytest.mark.slow
def test_the_cost_model_is_checked_against_the_prefills(smollm2_path, tmp_path):
    assert "run benchmarks/prefill.py" in script("cost_model", "--quick", "--output", tmp_path, code=2)
    script("prefill", "--quick", "--output", tmp_path)
    script("cost_model", "--quick", "--output", tmp_path)
    rows = figures(tmp_path, "cost_model")
    assert [row["cell"]["model"] for row in rows if "measured" in row["facts"]] == [
        "SmolLM2-135M", "one layer of Llama 3.2 1B's shape",
    ]  # fmt: skip


@pytest.mark.slow
def test_bad_options_are_a_message_and_exit_code_2(tmp_path):
    assert "the device is 'tpu'" in script("attention", "--device", "tpu", "--output", tmp_path, code=2)
    assert "the dtype is 'int4'" in script("attention", "--dtype", "int4", "--output", tmp_path, code=2)
