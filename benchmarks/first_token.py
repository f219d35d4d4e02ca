"""Time to the first token of short questions after one system prompt: with the prefix cache, and without.

    python benchmarks/first_token.py            # about a minute on two cores
    python benchmarks/first_token.py --quick    # a smoke test

Each round asks another question, so only the system prompt can come from the cache.
"""

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import torch
from script import Options, Plan, run
from subjects import SMOLLM2, models

import segattn
from segattn.bench.checking import check_error, largest_error
from segattn.bench.results import Cell, Row
from segattn.bench.timing import Effort, alternate

# Tokens of the system prompt, of a question, and of the causal tail that opens the answer.
SYSTEM, QUESTION, TAIL = (256, 1024), 32, 4


def plan(options: Options) -> Plan:
    """One cell per length of the system prompt."""
    for system in (64,) if options.quick else SYSTEM:
        cell = {"model": SMOLLM2, "system": system, "question": QUESTION}
        yield cell, partial(measure, cell, options.effort(15.0, most=12, warm_up=False), options)


def measure(cell: Cell, effort: Effort, options: Options) -> Row:
    """Compare the first logits with and without the cache, then time both in turns."""
    model = models(SMOLLM2, options)["segments"]
    cache = segattn.PrefixCache(model, max_bytes=2**30)
    asks = {"no cache": asker(model, cell["system"]), "prefix cache": asker(model, cell["system"], cache)}
    with torch.inference_mode():
        for _ in range(2):  # once to fill the cache, once to use it
            found = {name: ask() for name, ask in asks.items()}
        error = largest_error(found["prefix cache"], found["no cache"])
        check_error("the prefix cache (its first logits against those without it)", error, options.dtype)
        times = alternate(asks, effort, options.device)
    return Row(cell, times, ("no cache",), {"prefix cache": error})


def asker(model: Any, system: int, cache: Any = None) -> Callable[[], torch.Tensor]:
    """Return what asks the next question, each time it is called, and gives the logits of the first token."""
    numbers = count()
    length = system + QUESTION + TAIL
    spans = [(0, system), (system, system + QUESTION)]
    segments = segattn.spans_to_segment_ids(spans, length)[None].to(model.device)
    size = model.config.vocab_size
    start = torch.randint(0, size, (1, system), generator=torch.Generator().manual_seed(0))
    more = {} if cache is None else {"prefix_cache": cache}

    def ask() -> torch.Tensor:
        generator = torch.Generator().manual_seed(1 + next(numbers))
        question = torch.randint(0, size, (1, QUESTION + TAIL), generator=generator)
        ids = torch.cat([start, question], dim=1).to(model.device)
        found = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), segment_ids=segments, max_new_tokens=1, do_sample=False,
            output_logits=True, return_dict_in_generate=True, **more,
        )  # fmt: skip
        logits: torch.Tensor = found.logits[0]
        return logits

    return ask


if __name__ == "__main__":
    run("first_token", __doc__ or "", plan)
