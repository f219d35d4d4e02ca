"""Peak memory of a prefill of one layer of Llama 3.2 1B's shape: segments, causal and a dense mask.

    python benchmarks/memory.py            # about three minutes on two cores
    python benchmarks/memory.py --quick    # a smoke test

Each figure is the peak of a fresh process (its greatest resident set; on a GPU what torch allocated at most), in bytes.
The contestant "loaded" is a process that loads the same model and runs no prefill.
"""

import resource
import subprocess
import sys
from functools import partial

from script import Options, Plan, run

from segattn.bench.errors import BenchError
from segattn.bench.results import Cell, Row

LENGTHS = (1024, 4096, 16384)
CONTESTANTS = ("loaded", "causal", "segments", "dense")
LAYOUT = "25/70/5"


def plan(options: Options) -> Plan:
    """One cell per length."""
    for length in (64,) if options.quick else LENGTHS:
        cell = {"model": "one layer of Llama 3.2 1B's shape", "length": length, "layout": LAYOUT}
        # Twice where it is quick, which shows how little the peaks of a contestant differ.
        yield cell, partial(peaks, cell, 2 if length < LENGTHS[1] else 1, options)


def peaks(cell: Cell, rounds: int, options: Options) -> Row:
    """Run the contestants in turn, each in a process of its own."""
    found: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name in CONTESTANTS:
            found[name].append(peak_of(name, cell["length"], options))
    return Row(cell, found, ("causal", "loaded"))


def peak_of(contestant: str, length: int, options: Options) -> float:
    """Start a process that prints its peak, in bytes."""
    dtype = str(options.dtype).removeprefix("torch.")
    arguments = [contestant, str(length), dtype, str(options.device), "tiny" if options.quick else "whole"]
    done = subprocess.run([sys.executable, __file__, "--child", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BenchError(f"the process of {contestant!r} at {length} tokens failed: {reason}")
    return float(done.stdout.split()[-1])


def child(contestant: str, length: str, dtype: str, device: str, size: str) -> None:
    """Load the layer, run a prefill, print the peak."""
    import torch

    import segattn
    from segattn.bench.layouts import layout_ids
    from segattn.bench.machine import open_device, pick_dtype
    from segattn.bench.models import random_ids, single_layer

    place = open_device(device)
    model = single_layer(pick_dtype(dtype, place), place, tiny=size == "tiny")
    ids = random_ids(model, int(length))
    given = {}
    if contestant in ("segments", "dense"):
        segattn.enable(model, backend="auto" if contestant == "segments" else "dense")
        given = {"segment_ids": layout_ids(LAYOUT, int(length), place)}
    if contestant != "loaded":
        with torch.inference_mode():
            model(ids, logits_to_keep=1, **given)
    if place.type == "cuda":
        print(torch.cuda.max_memory_allocated(place))
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        run("memory", __doc__ or "", plan)
