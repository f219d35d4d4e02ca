"""Logits of enabled models against stock models that are given hand-built masks."""

import functools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import families.tiny_models
import segattn
from modeling.tiny import CASES, build, hand_mask, tokens
from strategies import fill, padded_batches

ROWS = [[-1] + [4] * 6 + [0] * 5 + [-1] * 2, [0] * 9 + [-1] * 3 + [1] * 2]


def stock_logits(name, implementation, ids, rows, reals=None, **inputs):
    model = build(name, implementation)
    with torch.no_grad():
        return model(ids, attention_mask=hand_mask(model, rows, implementation, reals), **inputs).logits


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_logits_equal_a_run_with_a_hand_built_mask(name, implementation):
    ids = tokens()
    want = stock_logits(name, implementation, ids, ROWS)
    causal = build(name, implementation)(ids).logits
    model = segattn.enable(build(name, implementation))
    with torch.no_grad():
        got = model(ids, segment_ids=torch.tensor(ROWS)).logits
    assert (want - causal).abs().max() > 1e-2, "the mask must matter for this test to mean anything"
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_all_causal_ids_give_the_stock_logits_bitwise(name, implementation):
    ids = tokens()
    with torch.no_grad():
        stock = build(name, implementation)(ids).logits
        model = segattn.enable(build(name, implementation))
        assert torch.equal(model(ids, segment_ids=torch.full_like(ids, -1)).logits, stock)
        with segattn.causal(model):
            assert torch.equal(model(ids).logits, stock)
            assert torch.equal(model(ids, segment_ids=torch.tensor(ROWS)).logits, stock)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral-window", "gemma3"])
@settings(max_examples=12, deadline=None)
@given(batch=padded_batches(max_length=12), seed=st.integers(0, 99))
def test_logits_with_padding_on_either_side(name, batch, seed):
    rows, reals = batch
    ids = tokens(len(rows), len(rows[0]), seed)
    positions = (torch.tensor(reals).cumsum(-1) - 1).clamp(min=0)
    want = stock_logits(name, "sdpa", ids, rows, reals, position_ids=positions)
    model = segattn.enable(build(name))
    with torch.no_grad():
        got = model(
            ids, attention_mask=torch.tensor(reals), segment_ids=torch.tensor(rows), position_ids=positions
        ).logits
    real = torch.tensor(reals).bool()
    torch.testing.assert_close(got[real], want[real], atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(2, 14), st.integers(0, 99))
def test_random_segmentations(data, length, seed):
    row = fill(data.draw, length)
    ids = tokens(1, length, seed)
    model = segattn.enable(build("llama"))
    with torch.no_grad():
        got = model(ids, segment_ids=torch.tensor([row])).logits
    torch.testing.assert_close(got, stock_logits("llama", "sdpa", ids, [row]), atol=1e-5, rtol=0)


def test_packed_rows_equal_separate_runs():
    model = segattn.enable(build())
    first, second = tokens(1, 6, 1), tokens(1, 8, 2)
    rows = [[0] * 4 + [-1] * 2, [0] * 5 + [1] * 2 + [-1]]
    with torch.no_grad():
        apart = [
            model(ids, segment_ids=torch.tensor([row])).logits for ids, row in zip((first, second), rows, strict=True)
        ]
        packed = model(
            torch.cat([first, second], 1),
            position_ids=torch.tensor([[*range(6), *range(8)]]),
            segment_ids=torch.tensor([rows[0] + [s + 10 if s >= 0 else -1 for s in rows[1]]]),
            use_cache=False,
        ).logits
    torch.testing.assert_close(packed, torch.cat(apart, 1), atol=1e-5, rtol=0)


def test_loss_and_gradients_equal_a_run_with_a_hand_built_mask():
    ids, labels = tokens(), tokens()
    labels[torch.tensor(ROWS) >= 0] = -100
    losses, gradients = [], []
    for enabled in (False, True):
        model = build()
        extra = {"segment_ids": torch.tensor(ROWS)} if enabled else {"attention_mask": hand_mask(model, ROWS, "sdpa")}
        if enabled:
            segattn.enable(model)
        loss = model(ids, labels=labels, **extra).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*losses, atol=1e-6, rtol=0)
    for stock, segments in zip(*gradients, strict=True):
        torch.testing.assert_close(segments, stock, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_gradient_checkpointing_changes_nothing(name, reentrant):
    ids, labels = tokens(), tokens()
    labels[torch.tensor(ROWS) >= 0] = -100
    gradients = []
    for checkpointed in (False, True):
        model = segattn.enable(build(name)).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(ids, labels=labels, segment_ids=torch.tensor(ROWS), use_cache=False).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-5)


def test_bfloat16_errs_like_the_stock_model():
    ids = tokens()
    exact = stock_logits("llama", "sdpa", ids, ROWS)
    stock = build().to(torch.bfloat16)
    with torch.no_grad():
        stock_error = (stock(ids, attention_mask=hand_mask(stock, ROWS, "sdpa")).logits.float() - exact).abs().max()
        model = segattn.enable(build().to(torch.bfloat16))
        error = (model(ids, segment_ids=torch.tensor(ROWS)).logits.float() - exact).abs().max()
    assert error <= 1.5 * stock_error


def test_the_backbone_called_directly_follows_segments():
    ids = tokens()
    stock = build()
    with torch.no_grad():
        want = stock.model(ids, attention_mask=hand_mask(stock, ROWS, "sdpa")).last_hidden_state
        got = segattn.enable(build()).model(ids, segment_ids=torch.tensor(ROWS)).last_hidden_state
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_positional_arguments_and_embeddings():
    ids, segment_ids = tokens(), torch.tensor(ROWS)
    model = segattn.enable(build())
    with torch.no_grad():
        want = model(input_ids=ids, segment_ids=segment_ids).logits
        assert torch.equal(model(ids, torch.ones_like(ids), segment_ids=segment_ids).logits, want)
        embeds = model.get_input_embeddings()(ids)
        assert torch.equal(model(inputs_embeds=embeds, segment_ids=segment_ids).logits, want)


def test_an_opening_bias_is_an_additive_mask_on_the_keys_ahead():
    ids = tokens()
    segments = hand_mask(build(), ROWS, "sdpa")
    causal = hand_mask(build(), [[-1] * 14] * 2, "sdpa")
    for bias in (-8.0, -2.5, 0.0):
        additive = torch.where(causal, 0.0, torch.where(segments, bias, torch.finfo(torch.float32).min))
        with torch.no_grad():
            want = build()(ids, attention_mask=additive).logits
            for implementation in ("sdpa", "eager"):
                model = segattn.enable(build(implementation=implementation))
                segattn.modeling.set_opening(model, bias)
                got = model(ids, segment_ids=torch.tensor(ROWS)).logits
                torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    segattn.modeling.set_opening(model, None)
    with torch.no_grad():
        plain = model(ids, segment_ids=torch.tensor(ROWS)).logits
    torch.testing.assert_close(plain, want, atol=1e-5, rtol=0)  # a bias of 0 was the rule itself


@pytest.mark.parametrize(("family", "keeps_apart"), [("gpt_neox", True), ("opt", False), ("falcon", False)])
def test_packed_rows_are_refused_where_the_class_mixes_documents(family, keeps_apart):
    model = segattn.enable(families.tiny_models.build(family, "sdpa"))
    ids, positions = tokens(1, 10), torch.tensor([[*range(4), *range(6)]])
    row = torch.tensor([[0, 0, 0, -1, 1, 1, 1, 1, -1, -1]])
    call = functools.partial(model, ids, segment_ids=row, position_ids=positions, use_cache=False)
    if not keeps_apart:
        with pytest.raises(segattn.UnsupportedModelError, match="do not keep the documents apart"):
            call()
        return
    with torch.no_grad():
        alone = model(ids[:, 4:], segment_ids=row[:, 4:]).logits
        torch.testing.assert_close(call().logits[:, 4:], alone, atol=1e-5, rtol=0)


def test_positions_may_jump_where_no_documents_are_looked_for():
    ids, row = tokens(1), torch.tensor([ROWS[0]])
    positions = torch.arange(14)[None] + 5 * (torch.arange(14) > 6)
    model = segattn.enable(build())
    with torch.no_grad():
        got = model(ids, attention_mask=torch.ones_like(ids), segment_ids=row, position_ids=positions).logits
    torch.testing.assert_close(
        got, stock_logits("llama", "sdpa", ids, [ROWS[0]], position_ids=positions), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral-window"])
def test_flex_attention_uncompiled(name):
    model = segattn.enable(build(name, "flex_attention"))
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch warns that it builds all scores
        got = model(tokens(), segment_ids=torch.tensor(ROWS)).logits
    torch.testing.assert_close(got, stock_logits(name, "sdpa", tokens(), ROWS), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_flex_attention_compiled():
    model = segattn.enable(build("llama", "flex_attention", head_dim=16))
    with torch.no_grad():
        got = model(tokens(), segment_ids=torch.tensor(ROWS)).logits
        stock = build("llama", head_dim=16)
        want = stock(tokens(), attention_mask=hand_mask(stock, ROWS, "sdpa")).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
