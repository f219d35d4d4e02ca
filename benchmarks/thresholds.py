"""When slices pay: many short segments, under a mask and in slices; what `backend="auto"` takes, and its two numbers.

python benchmarks/thresholds.py            # about a minute on two cores
python benchmarks/thresholds.py --quick    # a smoke test
"""

from functools import partial

from script import Options, Plan, run

from segattn.attention.backends import slices_pay
from segattn.attention.slices import plan_slices
from segattn.bench.attention import AttentionCell, measure_attention
from segattn.bench.layouts import layout_ids
from segattn.bench.results import Row
from segattn.bench.timing import Effort
from segattn.ranges import visible_ranges

LENGTHS = (128, 256, 512, 1024, 2048)
TURNS = (1, 4, 16, 64)


def plan(options: Options) -> Plan:
    """One cell for each length and number of turns."""
    for length in (128,) if options.quick else LENGTHS:
        for turns in (4,) if options.quick else TURNS:
            cell = AttentionCell(length, f"{turns} turns")
            # Short calls vary by more than long ones, and many of them fit in a second.
            yield cell.to_dict(), partial(measure, cell, options, options.effort(1.5, most=200))


def measure(cell: AttentionCell, options: Options, effort: Effort) -> Row:
    """Time a mask and slices that are there already, as in all layers of a model but the first."""
    names = ("full", "dense", "planned")
    row = measure_attention(cell, names, effort, dtype=options.dtype, device=options.device)
    ranges = visible_ranges(layout_ids(cell.layout, cell.length))
    assert ranges is not None
    slices = plan_slices(ranges)
    chosen = "planned" if slices_pay(slices, cell.heads, options.device.type) else "dense"
    row.facts.update({"slices": len(slices.slices), "pairs": slices.pairs(), "auto": chosen})
    return row


if __name__ == "__main__":
    run("thresholds", __doc__ or "", plan, dtype="float32")
