"""One step of LoRA training on SmolLM2-135M: forward, backward and optimizer, segments against causal.

python benchmarks/training_step.py            # about three minutes on two cores
python benchmarks/training_step.py --quick    # a smoke test
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from script import Options, Plan, run
from subjects import SMOLLM2, models

import segattn
from segattn.bench.checking import check_error
from segattn.bench.layouts import layout_ids
from segattn.bench.models import random_ids
from segattn.bench.results import Cell, Row
from segattn.bench.timing import Effort, alternate

CELLS = ((128, "25/70/5"), (256, "25/70/5"), (256, "ten turns"), (512, "25/70/5"))


def plan(options: Options) -> Plan:
    """One cell per length and layout."""
    for length, layout in ((64, "25/70/5"),) if options.quick else CELLS:
        cell = {"model": SMOLLM2, "length": length, "layout": layout}
        yield cell, partial(measure, cell, options.effort(30.0, least=6, most=30, warm_up=False), options)


def measure(cell: Cell, effort: Effort, options: Options) -> Row:
    """Compare the first loss in slices and under a mask, then time steps in turns."""
    model = models(SMOLLM2, options)["causal"]
    ids = random_ids(model, cell["length"])
    segments = layout_ids(cell["layout"], cell["length"], ids.device)
    labels = ids.where(segments < 0, -100)
    given = {"input_ids": ids, "labels": labels}
    steps = {
        "causal": stepper(with_adapter(model, None), given),
        "segments": stepper(with_adapter(model, "auto"), {**given, "segment_ids": segments}),
        "dense": stepper(with_adapter(model, "dense"), {**given, "segment_ids": segments}),
    }
    # The first step, which is slower than the others, is not timed.
    first = {name: step() for name, step in steps.items()}
    error = abs(first["segments"] - first["dense"]) / first["dense"]
    check_error("segments (its first loss against that under a dense mask)", error, options.dtype)
    timed = {name: steps[name] for name in ("causal", "segments")}
    return Row(cell, alternate(timed, effort, options.device), ("causal",), {"segments": error})


def with_adapter(model: Any, backend: Any) -> Any:
    """Return a copy with an adapter of its own, on the same weights; enabled unless `backend` is None."""
    from peft import LoraConfig, get_peft_model

    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    torch.manual_seed(0)
    config = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(copy.deepcopy(model, shared), config)
    adapted.train()
    return adapted if backend is None else segattn.enable(adapted, backend=backend)


def stepper(model: Any, batch: dict[str, torch.Tensor]) -> Callable[[], float]:
    """Return what makes one optimizer step and gives the loss before it."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4)

    def step() -> float:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    run("training_step", __doc__ or "", plan)
