"""What segments cost after the prefill, and once: decoding one token; `enable`, `disable` and the probe of a model.

    python benchmarks/decoding.py            # about a minute on two cores
    python benchmarks/decoding.py --quick    # a smoke test

Each model decodes on a cache of its own prefill, one token in turn. Decoding needs no segment mask, so the ratio is
expected to be one.
"""

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import torch
from script import Options, Plan, run
from subjects import SMOLLM2, models

import segattn
from segattn.bench.layouts import layout_ids
from segattn.bench.models import random_ids
from segattn.bench.results import Cell, Row
from segattn.bench.timing import Effort, alternate
from segattn.modeling import probe

PROMPTS = (256, 1024)


def plan(options: Options) -> Plan:
    """Decoding after each prompt, then switching."""
    for prompt in (64,) if options.quick else PROMPTS:
        cell = {"model": SMOLLM2, "step": "decode one token", "prompt": prompt}
        # The first steps grow buffers.
        yield cell, partial(decoding, cell, options.effort(10.0, most=200), options)
    cell = {"model": SMOLLM2, "step": "switch"}
    yield cell, partial(switching, cell, options.effort(8.0), options)


def decoding(cell: Cell, effort: Effort, options: Options) -> Row:
    """Time single steps of the stock model and of the enabled one."""
    both = models(SMOLLM2, options)
    ids = random_ids(both["causal"], cell["prompt"])
    given: dict[str, dict[str, Any]] = {
        "causal": {},
        "segments": {"segment_ids": layout_ids("25/70/5", cell["prompt"])},
    }
    with torch.inference_mode():
        steps = {}
        for name, more in given.items():
            more = {key: value.to(ids.device) for key, value in more.items()}
            cache = both[name](ids, use_cache=True, logits_to_keep=1, **more).past_key_values
            steps[name] = stepper(both[name], cache, ids)
        times = alternate(steps, effort, options.device)
    return Row(cell, times, ("causal",))


def stepper(model: Any, cache: Any, ids: torch.Tensor) -> Callable[[], None]:
    """Return what decodes the next token, each time it is called."""
    steps = count()

    def step() -> None:
        place = next(steps) % ids.shape[1]
        model(ids[:, place : place + 1], past_key_values=cache, use_cache=True)

    return step


def switching(cell: Cell, effort: Effort, options: Options) -> Row:
    """Time `enable` with `disable`, and the probe that a class outside of the verified table goes through."""
    model = models(SMOLLM2, options)["causal"]

    def on_and_off() -> None:
        segattn.enable(model)
        segattn.disable(model)

    with torch.inference_mode():
        times = alternate({"enable and disable": on_and_off, "probe": lambda: probe(model)}, effort, options.device)
    return Row(cell, times, (), facts={"layers": model.config.num_hidden_layers})


if __name__ == "__main__":
    run("decoding", __doc__ or "", plan)
