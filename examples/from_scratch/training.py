"""One cell of the experiment: train one model from zero, measure it, return a row of the results file."""

import time
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import segattn
from segattn.modeling import set_opening
from segattn.segments import IGNORED_LABEL
from segattn.training import opening_bias

from .arms import ARMS
from .checkpoint import make_model
from .encoding import Data, Rows, load_data
from .measuring import measure

__all__ = ["FULL", "QUICK", "Cell", "Effort", "answer_loss", "run_cell"]

POLICIES = ("causal", "turns", "prefix")


@dataclass(frozen=True)
class Cell:
    """What is trained; tells rows apart."""

    task: str
    arm: str
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Effort:
    """How long, and on how much data. The curve takes the first `curve_items` held-out items."""

    steps: int
    batch_size: int
    train_items: int
    held_out_tables: int
    curve_items: int
    curve_points: int


FULL = Effort(steps=2400, batch_size=32, train_items=24_000, held_out_tables=400, curve_items=300, curve_points=12)
QUICK = Effort(steps=300, batch_size=32, train_items=9_600, held_out_tables=100, curve_items=150, curve_points=3)


@cache
def _data(task: str, train_items: int, held_out_tables: int) -> Data:
    return load_data(task, train_items, held_out_tables)


def run_cell(cell: Cell, effort: Effort) -> dict[str, Any]:
    """Train and measure one model.

    The seed decides the first weights and the order of the rows: the arms of a seed begin with the same weights and
    see the same rows in the same order.

    Returns:
        The row: the cell, the effort, held-out scores along the way under the arm's own mask ("curve"), at the end
        under every mask ("final"), and at the end on rows that were learned from ("train").
    """
    data, start = _data(cell.task, effort.train_items, effort.held_out_tables), time.process_time()
    policy = ARMS[cell.arm].policy
    model = segattn.enable(make_model(data.tokenizer, cell.seed), data.segmenter.with_policy(policy))
    curve = _train(model, data, cell, effort)
    scores = {mask: measure(model, data.segmenter, mask, data.held_out) for mask in POLICIES}
    return {
        "cell": asdict(cell),
        "effort": asdict(effort),
        "curve": curve,
        "final": scores,
        "train": measure(model, data.segmenter, policy, data.train[: len(data.held_out.hops)]),
        "parameters": model.num_parameters(),
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def _train(model: Any, data: Data, cell: Cell, effort: Effort) -> list[dict[str, Any]]:
    arm, rows = ARMS[cell.arm], data.train
    segmenter = data.segmenter.with_policy(arm.policy)
    segment_ids = segmenter.segment_ids(rows.input_ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cell.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, effort.steps))
    curve_rows, curve = data.held_out[: effort.curve_items], []
    opening_steps = round(arm.opening * effort.steps)
    batches = _batches(len(rows.hops), effort, cell.seed)
    every = effort.steps // effort.curve_points
    model.train()
    for step in range(effort.steps + 1):
        if step % every == 0:
            curve.append({"step": step, **measure(model, data.segmenter, arm.policy, curve_rows)})
        if step == effort.steps:
            break
        set_opening(model, opening_bias(step, opening_steps))
        chosen = next(batches)
        loss = answer_loss(model, rows[chosen], segment_ids[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    set_opening(model, None)
    return curve


def _rate(step: int, steps: int) -> float:
    """The share of the learning rate at a step: a short rise, then a line down to 0."""
    return min((step + 1) / 50, 1 - step / steps)


def _batches(count: int, effort: Effort, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count // effort.batch_size * effort.batch_size].view(-1, effort.batch_size)


def answer_loss(model: Any, rows: Rows, segment_ids: torch.Tensor) -> torch.Tensor:
    """Mean over answer tokens; only their positions are projected onto the vocabulary."""
    wanted = rows.labels[:, 1:]
    answers = wanted != IGNORED_LABEL
    hidden = model.transformer(
        input_ids=rows.input_ids, attention_mask=torch.ones_like(rows.input_ids), segment_ids=segment_ids
    ).last_hidden_state
    return cross_entropy(model.lm_head(hidden[:, :-1][answers]), wanted[answers])
