"""Training steps as they happen, and their losses computed on a stock model under a mask from a double loop."""

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers

from chatml import START
from cli.tiny_chat import make_model, make_tokenizer
from oracle import loop_mask

_TOKENIZER = make_tokenizer()
_NEW_LINE = _TOKENIZER("\n").input_ids[0]


@dataclass
class Step:
    batch: dict[str, Any]
    weights: dict[str, Any]
    loss: float


def record_steps(monkeypatch):
    """The list of steps of every transformers trainer that trains from here on."""
    steps, stock = [], transformers.Trainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        batch = {name: value.clone() for name, value in inputs.items() if torch.is_tensor(value)}
        loss = stock(self, model, inputs, *args, **kwargs)
        steps.append(Step(batch, weights, float(loss)))
        return loss

    monkeypatch.setattr(transformers.Trainer, "training_step", training_step)
    return steps


def assert_under_segments(step, adapter=None):
    under_segments, causal = hand_losses(step, adapter)
    assert step.loss == pytest.approx(under_segments, rel=1e-4)
    assert abs(step.loss - causal) > 1e-3


def hand_losses(step, adapter=None):
    """Mean loss over the labels of a step's batch, (under segments, causal), with the tiny model of `cli.tiny_chat`.

    `adapter` is the PEFT config of the adapter that the model is wrapped in.
    """
    ids, positions = step.batch["input_ids"], step.batch.get("position_ids")
    rows, length = ids.shape
    reals = step.batch.get("attention_mask", torch.ones_like(ids)).bool().tolist()
    segments = [_segments(row, real) for row, real in zip(ids.tolist(), reals, strict=True)]
    documents = None if positions is None else [_documents(row) for row in positions.tolist()]
    if positions is None:
        positions = torch.arange(length).expand(rows, length)
    model = make_model()
    if adapter is not None:
        from peft import get_peft_model

        model = get_peft_model(model, adapter)
    model.load_state_dict(step.weights)
    model.eval().set_attn_implementation("eager")
    labels = step.batch["labels"][:, 1:].reshape(-1)
    losses = []
    for ids_of_segments in (segments, [[-1] * length] * rows):
        mask = loop_mask(ids_of_segments, reals=reals, documents=documents) | torch.eye(length, dtype=torch.bool)
        bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=bias, position_ids=positions, use_cache=False).logits
        losses.append(float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels)))
    return losses


def _segments(ids, real):
    """Every message but the assistant's is a segment, read from the role after each start marker."""
    found, number, current = [], -1, -1
    for place, token in enumerate(ids):
        if token == START and real[place]:
            header = ids[place + 1 : ids.index(_NEW_LINE, place)]
            is_answer = _TOKENIZER.decode(header) == "assistant"
            number += not is_answer
            current = -1 if is_answer else number
        found.append(current if real[place] else -1)
    return found


def _documents(positions):
    """Positions that do not go on by one begin another document."""
    numbers = [0]
    for before, position in itertools.pairwise(positions):
        numbers.append(numbers[-1] + (position != before + 1))
    return numbers
