"""The loss of a batch of ChatML tokens, computed on a stock model under a mask from a double loop."""

import itertools

import torch

from chatml import START
from cli.tiny_chat import make_model, make_tokenizer
from oracle import loop_mask

_TOKENIZER = make_tokenizer()
_NEW_LINE = _TOKENIZER("\n").input_ids[0]


def hand_losses(batch, weights):
    """Mean loss over the labels of a batch, (under segments, causal), of the tiny model with these weights."""
    ids, positions = batch["input_ids"], batch.get("position_ids")
    rows, length = ids.shape
    reals = batch.get("attention_mask", torch.ones_like(ids)).bool().tolist()
    segments = [_segments(row, real) for row, real in zip(ids.tolist(), reals, strict=True)]
    causal = [[-1] * length for _ in range(rows)]
    documents = None if positions is None else [_documents(row) for row in positions.tolist()]
    if positions is None:
        positions = torch.arange(length).expand(rows, length)
    model = make_model()
    model.load_state_dict(weights)
    model.set_attn_implementation("eager")
    losses = []
    for ids_of_segments in (segments, causal):
        mask = loop_mask(ids_of_segments, reals=reals, documents=documents) | torch.eye(length, dtype=torch.bool)
        bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=bias, position_ids=positions, use_cache=False).logits
        labels = batch["labels"][:, 1:].reshape(-1)
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
