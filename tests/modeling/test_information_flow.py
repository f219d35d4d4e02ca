"""Change one token: hidden states may change where the rule lets that token be seen, and nowhere else."""

import pytest
import torch

import segattn
from modeling.tiny import CASES, VOCABULARY, WINDOW, build, tokens
from oracle import loop_mask

ROW = [-1] + [0] * 6 + [1] * 5 + [-1] * 4


def reach(model, row):
    """May a change of token j reach token i after all layers? From the masks of the layers, multiplied."""
    kinds = getattr(model.config, "layer_types", None) or ["full"] * model.config.num_hidden_layers
    if model.config.model_type == "mistral" and model.config.sliding_window is not None:
        kinds = ["sliding_attention"] * len(kinds)
    if model.config.model_type in ("llama", "gemma"):
        kinds = ["full"] * len(kinds)
    total = torch.eye(len(row))
    for kind in kinds:
        layer = loop_mask([row], window=WINDOW if kind == "sliding_attention" else None)[0, 0].float()
        total = ((layer + torch.eye(len(row))) @ total).clamp(max=1)
    return total.bool()


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_one_changed_token_is_felt_exactly_where_the_rule_says(name, implementation):
    model = segattn.enable(build(name, implementation))
    may_reach = reach(model, ROW)
    ids, segment_ids = tokens(1, len(ROW)), torch.tensor([ROW])
    with torch.no_grad():
        before = model(ids, segment_ids=segment_ids).logits[0]
        for changed in range(len(ROW)):
            other = ids.clone()
            other[0, changed] = 3 + (int(ids[0, changed]) - 2) % (VOCABULARY - 3)
            moved = (model(other, segment_ids=segment_ids).logits[0] - before).abs().amax(-1)
            assert (moved[~may_reach[:, changed]] < 1e-6).all(), f"token {changed} leaks"
            assert (moved[may_reach[:, changed]] > 1e-7).all(), f"token {changed} is not felt"


def test_a_finished_segment_does_not_depend_on_what_follows():
    """Its keys and values may be cached and shared (semantics: consequence 1)."""
    model = segattn.enable(build())
    ids, segment_ids = tokens(1, len(ROW)), torch.tensor([ROW])
    with torch.no_grad():
        whole = model(ids, segment_ids=segment_ids, use_cache=True).past_key_values
        prefix = model(ids[:, :7], segment_ids=segment_ids[:, :7], use_cache=True).past_key_values
    for layer, part in zip(whole.layers, prefix.layers, strict=True):
        torch.testing.assert_close(layer.keys[:, :, :7], part.keys, atol=1e-6, rtol=0)
        torch.testing.assert_close(layer.values[:, :, :7], part.values, atol=1e-6, rtol=0)


def test_a_conversation_in_one_pass_equals_turn_by_turn():
    """Every answer token sees in training what it will see at inference (semantics: consequence 2)."""
    row = [-1] + [0] * 5 + [-1] * 4 + [1] * 4 + [-1] * 3
    ids, segment_ids = tokens(1, len(row)), torch.tensor([row])
    model = segattn.enable(build())
    with torch.no_grad():
        at_once = model(ids, segment_ids=segment_ids).logits
        cache, parts = None, []
        for start, end in ((0, 6), (6, 10), (10, 14), (14, 17)):
            step = model(ids[:, start:end], segment_ids=segment_ids[:, :end], past_key_values=cache, use_cache=True)
            cache, _ = step.past_key_values, parts.append(step.logits)
    torch.testing.assert_close(torch.cat(parts, 1), at_once, atol=1e-5, rtol=0)
