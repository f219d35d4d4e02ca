"""What segments cost on large models: a prediction from counts, checked against the prefills that were measured.

    python benchmarks/cost_model.py            # a second, after prefill.py
    python benchmarks/cost_model.py --quick    # a smoke test

A prefill of n tokens takes 2 n operations for each weight of a linear layer, and 4 d for each score of each head (d is
the head size). Attention needs more time per operation than a linear layer does; how much more (the slowdown) is taken
from one measured prefill per model, and predicts that model's other lengths. Llama 3 is predicted from the counts
alone, and with the slowdown of the single layer. What grows neither with weights nor with scores is left out.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from script import Options, Plan, run, shown
from subjects import LAYER

from segattn.bench.errors import BenchError
from segattn.bench.layouts import LAYOUTS, layout_ids
from segattn.bench.models import ModelShape
from segattn.bench.results import Results, Row, read_results
from segattn.segments import attention_cost

LENGTHS = {"8k": 8_192, "128k": 131_072, "1M": 1_048_576}
CALIBRATED_AT = 1024  # tokens


def llama3(layers: int, hidden: int, heads: int, intermediate: int) -> ModelShape:
    """A shape of the Llama 3 family: 8 key heads of 128 numbers, gated MLP."""
    kv_heads, head_size = 8, 128
    attention = 2 * hidden * heads * head_size + 2 * hidden * kv_heads * head_size
    return ModelShape(layers, heads, kv_heads, head_size, layers * (attention + 3 * hidden * intermediate))


LARGE = {"Llama 3 8B": llama3(32, 4096, 32, 14336), "Llama 3 70B": llama3(80, 8192, 64, 28672)}


def predict(shape: ModelShape, length: int, scores: float, slowdown: float) -> float:
    """Return the operations of a prefill, those of attention counted `slowdown` times."""
    return 2.0 * shape.linear * length + slowdown * 4.0 * shape.head_size * shape.heads * shape.layers * scores


def slowdown_of(row: Row) -> float:
    """Return how much longer an operation of attention took than one of the rest, in a measured prefill."""
    facts, length = row.facts, row.cell["length"]
    full = row.figure("one full attention").median
    in_attention = facts["layers"] * full * facts["scores"]["causal"] / facts["scores"]["dense"]
    rest = row.figure("causal").median - in_attention
    if rest <= 0:
        return 1.0  # figures of a smoke test may say so
    per_score_operation = full / (4.0 * facts["head_size"] * facts["heads"] * facts["scores"]["dense"])
    slowdown: float = per_score_operation / (rest / (2.0 * facts["linear"] * length))
    return slowdown


def plan(options: Options) -> Plan:
    """The measured points first, then the large shapes."""
    measured = prefills(options)
    calibrated = calibration(measured)
    slowdowns = {model: slowdown_of(row) for model, row in calibrated.items()}
    for row in measured.rows:
        model = row.cell["model"]
        taken = row is calibrated[model]
        cell = {**row.cell, "slowdown": "taken from this point" if taken else "taken from another length"}
        yield cell, partial(checked, cell, row, slowdowns[model])
    for name, shape in LARGE.items():
        for layout in LAYOUTS:
            for length in LENGTHS.values():
                for label, slowdown in (("none", 1.0), ("of the single layer here", slowdowns.get(LAYER, 1.0))):
                    cell = {"model": name, "length": length, "layout": layout, "slowdown": label}
                    yield cell, partial(predicted, cell, shape, slowdown)


def prefills(options: Options) -> Results:
    """Return the prefills that were measured on this device."""
    path = options.results / "prefill.json"
    if not path.exists():
        raise BenchError(f"there is no {shown(path)} yet; run benchmarks/prefill.py with the same options first")
    return read_results(path)


def calibration(measured: Results) -> dict[str, Row]:
    """Return for each model the row that its slowdown is taken from: the one nearest to `CALIBRATED_AT` tokens."""
    rows: dict[str, Row] = {}
    for row in sorted(measured.rows, key=lambda row: -abs(row.cell["length"] - CALIBRATED_AT)):
        rows[row.cell["model"]] = row
    return rows


def checked(cell: dict[str, Any], row: Row, slowdown: float) -> Row:
    """Predict a point that was measured."""
    facts = row.facts
    shape = ModelShape(facts["layers"], facts["heads"], 0, facts["head_size"], facts["linear"])
    found = predicted(cell, shape, slowdown)
    found.facts["measured"] = row.ratio("segments", "causal").to_dict()
    found.facts["counts alone"] = predicted(cell, shape, 1.0).ratio("segments", "causal").median
    return found


def predicted(cell: Mapping[str, Any], shape: ModelShape, slowdown: float) -> Row:
    """Predict the operations of a causal prefill and of one with segments."""
    cost = attention_cost(layout_ids(cell["layout"], cell["length"]))
    figures = {name: [predict(shape, cell["length"], cost[name], slowdown)] for name in ("causal", "segments")}
    return Row(dict(cell), figures, ("causal",), facts={"slowdown": slowdown, "linear": shape.linear})


if __name__ == "__main__":
    run("cost_model", __doc__ or "", plan)
