"""A conversation of several turns trains in one pass: as if each turn had been trained by itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

import segattn
from cli.tiny_chat import make_model, make_tokenizer
from segattn.data import Encoder, Sample

TOKENIZER = make_tokenizer()
WORD = st.text("abc ?", min_size=1, max_size=9).filter(str.strip)


def loss_and_gradients(model, rows):
    model.zero_grad()
    total = torch.zeros(())
    for row in rows:
        ids, labels, segments = (torch.tensor([v]) for v in (row.input_ids, row.labels, row.segment_ids))
        logits = model(input_ids=ids, segment_ids=segments, use_cache=False).logits
        total = total + cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum", ignore_index=-100)
    total.backward()
    return total.item(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("policy", ["turns", "prefix"])
@settings(max_examples=8, deadline=None)
@given(words=st.lists(WORD, min_size=6, max_size=6))
def test_one_pass_equals_training_each_turn_by_itself(policy, words):
    roles = ("user", "assistant") * 3
    messages = tuple({"role": role, "content": word} for role, word in zip(roles, words, strict=True))
    encoder = Encoder(segattn.Segmenter.from_tokenizer(TOKENIZER, policy=policy))
    whole = encoder.encode(Sample(messages[:5], words[5], learn="all"))
    turns = [encoder.encode(Sample(messages[:end], words[end])) for end in (1, 3, 5)]
    model = segattn.enable(make_model())
    loss, gradients = loss_and_gradients(model, [whole])
    want, wanted = loss_and_gradients(model, turns)
    assert loss == pytest.approx(want, rel=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_segments_that_reached_over_an_answer_would_show():
    """The same chat with its first answer inside a segment: another loss, so the test above can fail."""
    encoder = Encoder(segattn.Segmenter.from_tokenizer(TOKENIZER))
    messages = tuple({"role": role, "content": "abc"} for role in ("user", "assistant", "user"))
    row = encoder.encode(Sample(messages, "abc"))
    model = segattn.enable(make_model())
    plain, _ = loss_and_gradients(model, [row])
    last = max(number for number in row.segment_ids)
    end = row.segment_ids.index(last)
    joined = [0] * end + row.segment_ids[end:]
    other, _ = loss_and_gradients(model, [type(row)(row.input_ids, row.labels, joined)])
    assert abs(plain - other) > 1e-3
