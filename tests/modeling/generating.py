"""An oracle for generation: transformers' own loop on a stock model, with a hand-built mask in every pass."""

import inspect

import pytest
import torch
import transformers

import segattn
from modeling import tiny
from modeling.tiny import hand_mask

ROWS = [[-1] + [4] * 6 + [0] * 5 + [-1] * 2, [0] * 9 + [-1] * 3 + [1] * 2]
PADDED_ROWS = [[-1] * 4 + [0] * 5 + [1] * 3 + [-1] * 2, [-1] + [0] * 9 + [1] * 4]
PADDED_REALS = [[0] * 4 + [1] * 10, [1] * 14]
LOGITS = {"return_dict_in_generate": True, "output_logits": True}
GREEDY = {"do_sample": False, "max_new_tokens": 8, **LOGITS}
OLD = int(transformers.__version__.split(".")[1]) < 23
WITHOUT_A_BUG = pytest.mark.skipif(
    OLD, reason="the stock model of this transformers release generates wrong tokens here"
)
WINDOWED = ["llama", "mistral-window", "gemma3"]


def build(name="llama", implementation="sdpa", **options):
    """Gemma 3 with layers of both kinds, and so a cache with layers of both kinds."""
    if name == "gemma3":
        options["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    return tiny.build(name, implementation, **options)


def generate_by_hand(name, implementation, ids, rows, reals=None, **options):
    return run_by_hand(build(name, implementation), implementation, ids, rows, reals, **options)


def run_by_hand(model, implementation, ids, rows, reals=None, **options):
    """No cache: every step runs the whole sequence under a mask from the double loop."""
    stock_forward = model.forward

    def forward(input_ids=None, position_ids=None, **kwargs):
        copies, new = input_ids.shape[0] // len(rows), input_ids.shape[1] - len(rows[0])
        grown = [row + [-1] * new for row in rows for _ in range(copies)]
        seen = None if reals is None else [real + [1] * new for real in reals for _ in range(copies)]
        mask = hand_mask(model, grown, implementation, seen)
        return stock_forward(input_ids=input_ids, attention_mask=mask, position_ids=position_ids, return_dict=True)

    forward.__signature__ = inspect.signature(stock_forward)
    model.forward = forward
    attention_mask = torch.ones_like(ids) if reals is None else torch.tensor(reals)
    try:
        return model.generate(ids, attention_mask=attention_mask, use_cache=False, **options)
    finally:
        del model.forward


def generate(name, implementation, ids, rows, reals=None, **options):
    model = segattn.enable(build(name, implementation))
    attention_mask = torch.ones_like(ids) if reals is None else torch.tensor(reals)
    return model.generate(ids, attention_mask=attention_mask, segment_ids=torch.tensor(rows), **options)


def assert_same(got, want):
    """Equal tokens, and equal logits in every step: tokens of a random model may be equal by chance."""
    assert torch.equal(got.sequences, want.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=1e-5, rtol=0)
