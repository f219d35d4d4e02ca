"""Slices in the place of a mask: which models take them, when, and what happens where they get lost."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import families.tiny_models
import segattn
from modeling.tiny import CASES, build, hand_mask, tokens
from segattn.attention.slices import plan_slices
from segattn.modeling import layer_attention, verified
from segattn.modeling.mask_tokens import content_of, token_of
from segattn.ranges import visible_ranges

ROWS = [[-1] + [4] * 6 + [0] * 5 + [-1] * 2, [0] * 9 + [-1] * 3 + [1] * 2]
# Where transformers has SDPA for a class, eager attention stays what it is.
SLICED = [(name, kind) for name, kind in CASES if kind == "sdpa" or name == "gemma2"]


@contextlib.contextmanager
def counted(monkeypatch):
    """The number of layers that computed slices."""
    ran, stock = [], layer_attention.sliced_attention

    def sliced(*arguments, **options):
        ran.append(1)
        return stock(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(layer_attention, "sliced_attention", sliced)
        yield ran


@pytest.mark.parametrize(("name", "implementation"), SLICED)
def test_logits_and_gradients_equal_a_run_with_a_hand_built_mask(name, implementation, monkeypatch):
    ids = tokens()
    stock = build(name, implementation)
    want = stock(ids, attention_mask=hand_mask(stock, ROWS, implementation)).logits
    model = segattn.enable(build(name, implementation), backend="sliced")
    with counted(monkeypatch) as ran:
        got = model(ids, segment_ids=torch.tensor(ROWS)).logits
    assert len(ran) == model.config.num_hidden_layers
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    weights = torch.randn_like(want)
    for logits in (got, want):
        (logits * weights).sum().backward()
    for mine, theirs in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_gradient_checkpointing_finds_the_slices_again(name, reentrant, monkeypatch):
    ids, gradients = tokens(), []
    for checkpointed in (False, True):
        model = segattn.enable(build(name), backend="sliced").train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with counted(monkeypatch) as ran:
            model(ids, segment_ids=torch.tensor(ROWS), use_cache=False).logits.square().sum().backward()
        assert len(ran) == (2 if checkpointed else 1) * model.config.num_hidden_layers
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, atol=1e-5, rtol=1e-4)


def test_packed_rows_equal_separate_runs(monkeypatch):
    model = segattn.enable(build("mistral-window"), backend="sliced")
    first, second = tokens(1, 6, 1), tokens(1, 8, 2)
    rows = [[0] * 4 + [-1] * 2, [0] * 5 + [1] * 2 + [-1]]
    with torch.no_grad(), counted(monkeypatch) as ran:
        apart = [
            model(ids, segment_ids=torch.tensor([row])).logits for ids, row in zip((first, second), rows, strict=True)
        ]
        packed = model(
            torch.cat([first, second], 1),
            position_ids=torch.tensor([[*range(6), *range(8)]]),
            segment_ids=torch.tensor([rows[0] + [s + 10 if s >= 0 else -1 for s in rows[1]]]),
            use_cache=False,
        ).logits
    assert len(ran) == 9
    torch.testing.assert_close(packed, torch.cat(apart, 1), atol=1e-5, rtol=0)


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor holds in memory that is made inside of the block."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3"])
def test_auto_makes_no_tensor_of_n_times_n_for_a_long_text(name):
    n, sizes = 1024, {}
    ids = tokens(1, n)
    segments = segattn.spans_to_segment_ids([(0, n // 4), (n // 4, n - 40)], n)[None]
    window = {"sliding_window": 256} if name != "llama" else {}
    for backend in ("auto", "dense"):
        model = segattn.enable(build(name, max_position_embeddings=n, **window), backend=backend)
        with torch.no_grad(), Largest() as largest:
            model(ids, segment_ids=segments, use_cache=False)
        sizes[backend] = largest.numbers
    assert sizes["auto"] <= n * 200
    assert sizes["dense"] >= n * n


def test_auto_takes_a_mask_where_slices_do_not_pay(monkeypatch):
    model = segattn.enable(build())
    with counted(monkeypatch) as ran, torch.no_grad():
        model(tokens(), segment_ids=torch.tensor(ROWS))
        assert not ran
        n = 128
        model(tokens(1, n), segment_ids=segattn.spans_to_segment_ids([(0, n)], n)[None])
    assert not ran


def test_decoding_after_a_sliced_prefill_gives_the_tokens_of_a_masked_one(monkeypatch):
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    want = segattn.enable(build(), backend="dense").generate(tokens(), segment_ids=torch.tensor(ROWS), **options)
    for more in ({}, {"cache_implementation": "static", "disable_compile": True}):
        with counted(monkeypatch) as ran:
            model = segattn.enable(build(), backend="sliced")
            got = model.generate(tokens(), segment_ids=torch.tensor(ROWS), **options, **more)
        assert len(ran) == 3, "the prefill, and no step after it"
        assert torch.equal(got, want)


def test_attention_weights_are_computed_where_they_are_asked_for():
    model = segattn.enable(build("gemma2", "eager"), backend="sliced")
    weights = model(tokens(), segment_ids=torch.tensor(ROWS), output_attentions=True).attentions
    assert len(weights) == 3
    seen = weights[0][0].sum(0) > 0  # the local layer comes first
    assert bool(seen[1, 4])
    assert not bool(seen[0, 1])


def test_layers_that_compare_the_name_of_their_attention_keep_a_mask():
    with pytest.raises(segattn.UnsupportedModelError, match="cannot run slices"):
        segattn.enable(families.tiny_models.build("falcon", "sdpa"), backend="sliced")
    model = segattn.enable(families.tiny_models.build("falcon", "sdpa"))
    assert not model._segattn_state.slices


def test_a_refused_demand_for_slices_leaves_the_stock_model():
    model = families.tiny_models.build("bloom", "eager")
    config = model.config
    with pytest.raises(segattn.UnsupportedModelError, match="leave backend out"):
        segattn.enable(model, backend="sliced")
    assert not segattn.is_enabled(model)
    assert model.config is config


def test_disable_gives_every_module_its_own_config_back():
    model = build()
    before = {name: vars(module).get("config") for name, module in model.named_modules()}
    segattn.disable(segattn.enable(model, backend="sliced"))
    assert all(vars(module).get("config") is before[name] for name, module in model.named_modules())


def test_a_model_of_an_unknown_class_is_probed_with_slices():
    model = build()
    model.__class__ = type("Mine", (type(model),), {"__module__": "mine"})
    assert segattn.enable(model)._segattn_state.slices
    assert model._segattn_state.backend == "auto"


def test_an_unknown_class_that_cannot_take_slices_gets_a_mask(monkeypatch):
    model = families.tiny_models.build("falcon", "sdpa")
    model.__class__ = type("Mine", (type(model),), {"__module__": "mine"})
    assert not segattn.enable(model)._segattn_state.slices


def test_slices_that_no_layer_computes_are_an_error(monkeypatch):
    """What the table says wrongly of a class does not run causally, nor without a mask."""
    monkeypatch.setitem(verified.SLICED, "BloomForCausalLM", "eager")
    model = segattn.enable(families.tiny_models.build("bloom", "eager"), backend="sliced")
    with pytest.raises(segattn.UnsupportedModelError, match="did not compute the slices"):
        model(tokens(), segment_ids=torch.tensor(ROWS))


def test_backends_are_named_and_kept():
    with pytest.raises(segattn.SegmentError, match="auto, dense, sliced"):
        segattn.enable(build(), backend="fast")
    model = segattn.enable(build(), backend="dense")
    assert segattn.enable(model)._segattn_state.backend == "dense"
    with pytest.raises(segattn.SegmentError, match="disable"):
        segattn.enable(model, backend="sliced")


# What stands for a plan.


def token_for(rows):
    return token_of(plan_slices(visible_ranges(torch.tensor(rows))))


def test_a_token_holds_one_number_and_survives_what_layers_do_to_masks():
    token = token_for(ROWS)
    plan = content_of(token)
    assert token.shape == (2, 1, 14, 14)
    assert token.untyped_storage().nbytes() == 8
    for passed_on in (token.detach(), token.clone(), token[:, :, :, :14], token.to("cpu"), token.contiguous()):
        assert content_of(passed_on) is plan


def test_stock_attention_does_not_take_a_token_for_a_mask():
    query = torch.zeros(2, 1, 14, 4)
    with pytest.raises(RuntimeError, match="attn_mask"):
        torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=token_for(ROWS))


def test_a_token_that_was_cut_or_outlived_its_plan_is_an_error():
    token = token_for(ROWS)
    with pytest.raises(segattn.UnsupportedModelError, match="whose slices are for"):
        content_of(token[:, :, :, :9])
    copied = token.clone()
    del token
    with pytest.raises(segattn.UnsupportedModelError, match="gone"):
        content_of(copied)


def test_masks_are_no_tokens():
    assert content_of(None) is None
    assert content_of(torch.ones(1, 1, 2, 2, dtype=torch.bool)) is None
    assert content_of(torch.ones(1, 2, dtype=torch.int64)) is None
