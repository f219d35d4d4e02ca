"""Prefill of SmolLM2-135M, and of one random layer of Llama 3.2 1B's shape: segments against causal and a dense mask.

    python benchmarks/prefill.py            # about six and a half minutes on two cores
    python benchmarks/prefill.py --quick    # a smoke test

The whole model goes up to 4,096 tokens, the single layer to 8,192. The dense mask is left out where it would take
long; the first cells have shown that it gives the same logits.
"""

from functools import partial

from script import Options, Plan, run
from subjects import LAYER, SMOLLM2, models

from segattn.bench.prefill import measure_prefill, prefill_cell
from segattn.bench.results import Cell, Row
from segattn.bench.timing import Effort

LAYOUT = "25/70/5"
ALL, WITHOUT_MASK = ("causal", "segments", "dense"), ("causal", "segments")
# Model, tokens, contestants, seconds of measuring.
CELLS = (
    (SMOLLM2, 512, ALL, 15),
    (SMOLLM2, 1024, ALL, 1),
    (SMOLLM2, 2048, ALL, 1),
    (SMOLLM2, 4096, WITHOUT_MASK, 1),
    (LAYER, 1024, ALL, 8),
    (LAYER, 2048, ALL, 1),
    (LAYER, 8192, WITHOUT_MASK, 1),
)
QUICK_CELLS = ((SMOLLM2, 64, ALL, 1), (LAYER, 64, ALL, 1))


def plan(options: Options) -> Plan:
    """The cells of a model from short to long, so that a long one needs no round to warm up."""
    for model, length, contestants, seconds in QUICK_CELLS if options.quick else CELLS:
        cell = prefill_cell(model, length, LAYOUT)
        effort = options.effort(seconds, warm_up=seconds > 1)
        yield cell, partial(measure, cell, contestants, effort, options)


def measure(cell: Cell, contestants: tuple[str, ...], effort: Effort, options: Options) -> Row:
    """Load the model if need be, and time it. A long cell's logits are not compared: a short one's were."""
    return measure_prefill(models(cell["model"], options), contestants, cell, effort, check=cell["length"] <= 1024)


if __name__ == "__main__":
    run("prefill", __doc__ or "", plan)
