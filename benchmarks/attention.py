"""Attention forward, and forward and backward: slices against causal, dense, transformers' own mask and FlexAttention.

    python benchmarks/attention.py            # about six minutes on two cores
    python benchmarks/attention.py --quick    # a smoke test

Up to 2,048 tokens there are 8 heads (2 of key and value), then 4 (1), and beyond 4,096 tokens 2 (1), to save minutes.
Their number is even, so that two threads share the work evenly whatever the contestant.
"""

from functools import partial

import torch
from script import Options, Plan, run

from segattn.bench.attention import AttentionCell, measure_attention
from segattn.bench.layouts import LAYOUTS

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
LONG = 4096
# FlexAttention compiles for each length class, half a minute each time on two cores.
FLEX_LENGTHS = (512, 4096)


def plan(options: Options) -> Plan:
    """One cell for each direction, length and layout."""
    for length in (64,) if options.quick else LENGTHS:
        for backward in (False, True):
            for layout in LAYOUTS:
                if length > LONG and backward and layout != "25/70/5":
                    continue  # minutes that say nothing new
                cell = AttentionCell(length, layout, backward, *heads_at(length))
                # The check has run each contestant once already.
                effort = options.effort(1.5 if length > LONG else 3.0, warm_up=False)
                measured = partial(measure_attention, cell, contestants(cell, options), effort)
                yield cell.to_dict(), partial(measured, dtype=options.dtype, device=options.device)


def heads_at(length: int) -> tuple[int, int]:
    """Heads of the query, and of key and value."""
    if length <= LONG // 2:
        return 8, 2
    return (4, 1) if length <= LONG else (2, 1)


def contestants(cell: AttentionCell, options: Options) -> list[str]:
    """Who runs. What a mask costs does not depend on what stands in it, so long cells time masks in one layout."""
    chosen = ["causal", "full", "sliced", "planned"]
    first = cell.layout == "25/70/5"
    if cell.length <= LONG or first:
        chosen += ["dense"] if cell.length > LONG and cell.backward else ["dense", "transformers"]
    on_cpu = options.device.type == "cpu"
    if cell.length in FLEX_LENGTHS and first and not (cell.backward and on_cpu) and options.dtype != torch.float64:
        chosen.append("flex")
    return chosen


if __name__ == "__main__":
    run("attention", __doc__ or "", plan, dtype="float32")
