"""Where attention goes, against a stock eager model under a hand-made mask, counted one by one."""

import pytest
import torch

import chatml
import segattn
from cli.tiny_chat import make_model, make_tokenizer
from oracle import loop_mask
from segattn.data import Sample
from segattn.evaluation.attention_pattern import attention_map, share_ahead

TOKENIZER = make_tokenizer()
ITEMS = [
    Sample(({"role": "system", "content": "s"}, {"role": "user", "content": text}), "b") for text in ("two", "three?")
]


def weights(item, attention="segments"):
    """(layers, heads, queries, keys) of a stock model, and the row of segment ids."""
    ids, _, row = chatml.conversation(TOKENIZER, item.messages, generation_prompt=True)
    stock = make_model()
    stock.set_attn_implementation("eager")
    mask = loop_mask([row if attention == "segments" else [-1] * len(row)])
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    with torch.no_grad():
        output = stock(torch.tensor([ids]), attention_mask=additive, output_attentions=True)
    return torch.stack([layer[0] for layer in output.attentions]), row


def enabled(implementation="eager"):
    model = make_model()
    model.set_attn_implementation(implementation)
    return segattn.enable(model, segattn.Segmenter.from_tokenizer(TOKENIZER))


def test_the_share_ahead():
    total, queries = 0, 0
    for item in ITEMS:
        found, row = weights(item)
        for query in range(len(row)):
            keys = [key for key in range(query + 1, len(row)) if row[key] == row[query] >= 0]
            if keys:
                total = total + found[:, :, query, keys].sum(-1)
                queries += 1
    got = share_ahead(enabled(), ITEMS)
    torch.testing.assert_close(torch.tensor(got), total / queries, atol=2e-5, rtol=0)
    assert 0.05 < torch.tensor(got).mean() < 0.95


@pytest.mark.parametrize("attention", ["segments", "causal"])
def test_the_map_of_a_prompt(attention):
    found, _ = weights(ITEMS[1], attention)
    got = torch.tensor(attention_map(enabled(), ITEMS[1], attention))
    torch.testing.assert_close(got, found.mean((0, 1)), atol=1e-4, rtol=0)
    assert bool(got.triu(1).any()) == (attention == "segments")


def test_models_without_weights_are_refused():
    with pytest.raises(segattn.UnsupportedModelError, match="attn_implementation='eager'"):
        share_ahead(enabled("flex_attention"), ITEMS)
    with pytest.raises(segattn.UnsupportedModelError, match="without a segmenter"):
        share_ahead(segattn.enable(make_model()), ITEMS)
    causal = segattn.enable(make_model(), segattn.Segmenter.from_tokenizer(TOKENIZER, policy="causal"))
    with pytest.raises(segattn.UnsupportedModelError, match="no prompt has a key ahead"):
        share_ahead(causal, [])
