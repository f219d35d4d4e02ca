"""docs/benchmarks.md is what the result files say, and says it right."""

import sys
from itertools import product

import pytest

from benchmarks.running import ROOT, script
from segattn.bench.results import Results, Row

PROVENANCE = {
    "device": "a machine, 2 threads",
    "environment": {"processor": "a machine", "threads": "2", "torch": "2.13.0"},
    "commit": "0123456789ab", "code": "ba9876543210", "began": "2026-01-01 00:00:00 UTC",
}  # fmt: skip


def write(folder, claim, rows, quick=False):
    path = folder / "a-machine-2-threads" / f"{claim}.json"
    results = Results(path, claim, {"quick": quick, "dtype": "float32"}, PROVENANCE)
    for row in rows:
        results.add(row)
    results.finish()


def attention_row(direction, length, sliced):
    """Causal takes 0.52, full attention 1, the mask 1.2."""
    figures = {"causal": 0.52, "full": 1.0, "dense": 1.2, "sliced": sliced, "planned": sliced - 0.01, "bound": 0.777}
    cell = {"length": length, "layout": "25/70/5", "pass": direction, "heads": 8, "kv_heads": 2, "head_size": 64}
    rounds = {name: [value * pace for pace in (1.0, 1.1, 0.9)] for name, value in figures.items()}
    return Row(cell, rounds, ("causal", "dense", "bound"), {"sliced": 1e-7}, {"share": 0.777})


def test_the_page_is_what_the_results_say():
    script("page", "--check")


def test_a_page_that_was_edited_is_noticed(tmp_path):
    page = tmp_path / "benchmarks.md"
    page.write_text((ROOT / "docs" / "benchmarks.md").read_text() + "Fast!\n")
    assert "is not what the results say" in script("page", "--check", "--page", page, code=1)


def test_targets_are_judged_by_the_worst_cell(tmp_path):
    directions = ("forward", "forward and backward")
    rows = [attention_row(direction, length, 0.78) for direction, length in product(directions, (1024, 4096))]
    rows += [attention_row("forward", 2048, 0.9), attention_row("forward and backward", 2048, 0.8)]
    write(tmp_path, "attention", rows)
    decoding = Row(
        {"step": "decode one token", "prompt": 256}, {"causal": [1.0] * 4, "segments": [1.01] * 4}, ("causal",)
    )
    write(tmp_path, "decoding", [decoding])
    write(tmp_path, "other", [Row({"length": 1}, {"a": [1.0]}, ())])  # a claim without a section of its own
    page = tmp_path / "page.md"
    script("page", "--results", tmp_path, "--page", page)
    text = page.read_text()
    assert "Figures of a smoke test" not in text
    lines = [line for line in text.splitlines() if line.startswith("| Sliced attention is within 1.10")]
    included = {line.split(" | ")[0]: line for line in lines if "planning included" in line}
    worst = next(line for start, line in included.items() if "backward" not in start)
    assert "1.16 (1.16-1.16), 2,048 tokens" in worst
    assert worst.endswith("| **missed** |")
    assert next(line for start, line in included.items() if "backward" in start).endswith("| met |")
    assert "1.54 (1.54-1.54), 4,096 tokens, 25/70/5 | met |" in text
    assert "1.01 (1.01-1.01), after 256 tokens | met |" in text
    assert text.count("**not measured**") == 4
    assert "0123456789ab" in text
    assert (tmp_path / "a-machine-2-threads" / "attention.png").exists()
    assert "![Time of attention relative to causal SDPA](a-machine-2-threads/attention.png)" in text


def test_a_damaged_result_file_is_named(tmp_path):
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "attention.json").write_text("{")
    assert "cannot be read" in script("page", "--results", tmp_path, "--page", tmp_path / "page.md", code=2)


@pytest.fixture
def cost_model(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import cost_model

    yield cost_model
    for name in ("cost_model", "script", "subjects"):
        sys.modules.pop(name, None)


def test_the_large_shapes_have_their_published_sizes(cost_model):
    # 8.03 and 70.55 billion weights, less the embeddings and the logits' layer, 128,256 by 4,096 and 8,192 each.
    published = {"Llama 3 8B": 8.03e9 - 2 * 128256 * 4096, "Llama 3 70B": 70.55e9 - 2 * 128256 * 8192}
    for name, weights in published.items():
        assert cost_model.LARGE[name].linear == pytest.approx(weights, rel=2e-3)


def test_the_cost_model_finds_the_slowdown_that_made_the_figures(cost_model):
    linear, layers, heads, size, length, slowdown = 10_000, 2, 4, 8, 1000, 3.0
    scores = {"causal": 500_500, "segments": 700_000, "dense": 1_000_000}
    per_score = slowdown * 4 * size * heads
    figures = {
        "one full attention": [per_score * scores["dense"]],
        "causal": [2 * linear * length + layers * per_score * scores["causal"]],
    }
    facts = {"scores": scores, "layers": layers, "linear": linear, "heads": heads, "head_size": size}
    row = Row({"model": "m", "length": length, "layout": "25/70/5"}, figures, ("causal",), facts=facts)
    assert cost_model.slowdown_of(row) == pytest.approx(slowdown)
    shape = cost_model.ModelShape(layers, heads, 4, size, linear)
    assert cost_model.predict(shape, length, scores["causal"], slowdown) == pytest.approx(figures["causal"][0])
