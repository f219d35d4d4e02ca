"""Attention forward, and forward and backward: slices against causal, dense, transformers' own mask and FlexAttention.

    python benchmarks/attention.py            # about seven minutes on two cores
    python benchmarks/attention.py --quick    # a smoke test

Up to 4,096 tokens there are 8 heads (2 of key and value), and 2 (1) beyond, which saves minutes. Their number is even,
so that two threads share the work evenly whatever the contestant.
"""

from functools import partial

import torch
from script import Options, Plan, run

from segattn.bench.attention import AttentionCell, measure_attention
from segattn.bench.layouts import LAYOUTS

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
LONG = 4096
# FlexAttention compiles for each length class, half a minute each time on two cores.
FLEX_LENGTHS = (512, 4096, 16384)


def plan(options: Options) -> Plan:
    """One cell for each direction, length and layout."""
    for length in (256,) if options.quick else LENGTHS:
        for backward in (False, True):
            for layout in LAYOUTS:
                long = length > LONG
                if long and backward and length == LENGTHS[-1] and layout != "25/70/5":
                    continue  # three minutes that say nothing new
                heads, kv_heads = (2, 1) if long else (8, 2)
                cell = AttentionCell(length, layout, backward, heads, kv_heads)
                effort = options.effort(1.5 if long else 4.0, warm_up=not long)
                measured = partial(measure_attention, cell, contestants(cell, options), effort)
                yield cell.to_dict(), partial(measured, dtype=options.dtype, device=options.device)


def contestants(cell: AttentionCell, options: Options) -> list[str]:
    """Who runs. What a mask costs does not depend on what stands in it, so long cells time masks in one layout."""
    chosen = ["causal", "full", "sliced"]
    first = cell.layout == "25/70/5"
    if cell.length <= LONG:
        chosen.append("planned")
    if cell.length <= LONG or first:
        chosen += ["dense"] if cell.length > LONG and cell.backward else ["dense", "transformers"]
    on_cpu = options.device.type == "cpu"
    if cell.length in FLEX_LENGTHS and first and not (cell.backward and on_cpu) and options.dtype != torch.float64:
        chosen.append("flex")
    return chosen


if __name__ == "__main__":
    run("attention", __doc__ or "", plan, dtype="float32")
