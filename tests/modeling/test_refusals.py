"""Whatever cannot honour segments refuses, says why, and leaves the model usable."""

import copy

import pytest
import torch
import transformers

import segattn
from modeling.tiny import build, hand_mask, tokens

IDS = tokens(1, 8)
ROW = torch.tensor([[0, 0, 0, 0, 1, 1, -1, -1]])


@pytest.fixture
def model():
    return segattn.enable(build())


def still_works(model):
    with torch.no_grad():
        want = build()(IDS, attention_mask=hand_mask(build(), ROW.tolist(), "sdpa")).logits
        torch.testing.assert_close(model(IDS, segment_ids=ROW).logits, want, atol=1e-5, rtol=0)


BAD_CALLS = {
    "no ids, no segmenter": ({}, "segment_ids is missing, and the model was enabled without a segmenter"),
    "float": ({"segment_ids": ROW.float()}, "float32"),
    "too long": ({"segment_ids": torch.tensor([[0] * 9])}, "covers 9 tokens, but there are only 8"),
    "other batch": ({"segment_ids": ROW.expand(2, -1)}, "2 rows for a batch of 1"),
    "reused": ({"segment_ids": torch.tensor([[0, 0, 1, 1, 0, 0, -1, -1]])}, "opens segment 0 again"),
    "below -1": ({"segment_ids": ROW - 1}, r"segment_ids\[0, 6\] is -2"),
    "empty": ({"segment_ids": ROW[:, :0]}, "at least one row and one token"),
    "a list": ({"segment_ids": ROW.tolist()}, "list"),
    "other device": ({"segment_ids": ROW.to("meta")}, "on meta"),
    "padding": (
        {"segment_ids": ROW, "attention_mask": torch.tensor([[0] * 4 + [1] * 4])},
        r"segment_ids\[0, 0\] is 0 on a padding token",
    ),
    "a 4D mask": (
        {"segment_ids": ROW, "attention_mask": torch.ones(1, 1, 8, 8, dtype=torch.bool)},
        "prepared mask",
    ),
    "packed, with a mask": (
        {
            "segment_ids": ROW,
            "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]),
            "attention_mask": torch.ones(1, 8, dtype=torch.int64),
        },
        "an attention_mask is given",
    ),
    "numbered documents": (
        {"segment_ids": ROW, "attention_mask": torch.tensor([[1] * 6 + [2] * 2])},
        "attention_mask holds 2; .* position_ids",
    ),
    "packed, with a cache": (
        {"segment_ids": ROW, "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])},
        "use_cache is on",
    ),
    "a segment across documents": (
        {"segment_ids": ROW, "position_ids": torch.tensor([[0, 1, 0, 1, 2, 3, 4, 5]]), "use_cache": False},
        "row 0, position 2: segment 0 runs across",
    ),
}


@pytest.mark.parametrize(("inputs", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_say_what_was_given(model, inputs, message):
    with pytest.raises(segattn.SegmentError, match=message):
        model(IDS, **inputs)
    still_works(model)


HUGE = torch.where(ROW < 0, ROW, ROW + 2**62)
ACCEPTED = {
    "int8": ROW.to(torch.int8),
    "int16": ROW.to(torch.int16),
    "int32": ROW.to(torch.int32),
    "one row": ROW[0],
    "other numbers": torch.tensor([[9, 9, 9, 9, 0, 0, -1, -1]]),
    "numbers beyond 32 bits": HUGE,
    "numbers that agree in their lower 32 bits": torch.where(ROW < 0, ROW, ROW * 2**32 + 5),
    "the largest number": torch.where(ROW == 1, 2**63 - 1, ROW),
    "not contiguous": torch.stack([ROW[0], ROW[0] + 1], 1).T[:1],
    "every second of a longer row": ROW.repeat_interleave(2, 1)[:, ::2],
    "expanded": torch.zeros(1, 1, dtype=torch.int64).expand(1, 8),
    "without the causal end": ROW[:, :6],
}


@pytest.mark.parametrize("ids", ACCEPTED.values(), ids=ACCEPTED)
def test_ids_of_other_shapes_and_types_that_say_the_same(model, ids):
    before = ids.clone()
    row = [0] * 8 if ids.stride() == (0, 0) or ids.unique().numel() == 1 else ROW[0].tolist()
    stock = build()
    with torch.no_grad():
        want = stock(IDS, attention_mask=hand_mask(stock, [row], "sdpa")).logits
        torch.testing.assert_close(model(IDS, segment_ids=ids).logits, want, atol=1e-5, rtol=0)
    assert torch.equal(ids, before), "the caller's ids were changed"
    still_works(model)


@pytest.mark.parametrize("kind", [torch.bool, torch.int32, torch.float32])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_masks_of_other_types(kind, implementation):
    ids, real = tokens(2, 8), torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
    rows = [[-1, -1, 0, 0, 0, 1, 1, -1], [0, 0, 0, 0, 1, 1, -1, -1]]
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    stock = build(implementation=implementation)
    mask = hand_mask(stock, rows, implementation, real.tolist())
    enabled = segattn.enable(build(implementation=implementation))
    with torch.no_grad():
        want = stock(ids, attention_mask=mask, position_ids=positions).logits
        got = enabled(ids, attention_mask=real.to(kind), segment_ids=torch.tensor(rows), position_ids=positions).logits
    torch.testing.assert_close(got[real.bool()], want[real.bool()], atol=1e-5, rtol=0)


def test_a_row_of_padding_leaves_the_others_alone(model):
    ids, real = IDS.repeat(2, 1), torch.tensor([[0] * 8, [1] * 8])
    with torch.no_grad():
        alone = model(IDS, segment_ids=ROW).logits
        both = model(ids, attention_mask=real, segment_ids=torch.cat([torch.full_like(ROW, -1), ROW])).logits
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=0)
    assert both.isfinite().all()
    with pytest.raises(segattn.SegmentError, match=r"segment_ids\[0, 0\] is 0 on a padding token"):
        model(ids, attention_mask=real, segment_ids=torch.cat([ROW, ROW]))
    still_works(model)


@pytest.mark.parametrize("shape", [(0, 8), (1, 0), (0, 0)])
def test_empty_batches(model, shape):
    empty = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(segattn.SegmentError, match="at least one row and one token"):
        model(empty, segment_ids=empty)
    still_works(model)


def test_inputs_that_are_not_a_number(model):
    """NaN is the caller's; the pass that it ran through must not reach the next one."""
    embeds = torch.full((1, 8, 32), torch.nan)
    with torch.no_grad():
        assert model(inputs_embeds=embeds, segment_ids=ROW).logits.isnan().all()
    still_works(model)


def test_inputs_on_another_device_than_the_ids(model):
    with pytest.raises(segattn.SegmentError, match="segment_ids is on cpu and the inputs on meta"):
        model(inputs_embeds=torch.zeros(1, 8, 32, device="meta"), segment_ids=ROW)
    still_works(model)


def test_a_segmenter_that_raises(model):
    class Broken:
        def segment_ids(self, input_ids, attention_mask=None):
            raise RuntimeError("no markers")

        def to_dict(self):
            return {}

    segattn.enable(model, Broken())
    for call in (model, model.model, model.generate):
        with pytest.raises(RuntimeError, match="no markers"):
            call(IDS)
        still_works(model)


def test_labels_that_leak_are_refused(model):
    with pytest.raises(segattn.LabelLeakError, match="row 0, position 1"):
        model(IDS, segment_ids=ROW, labels=IDS)
    still_works(model)


def test_a_cache_that_ends_inside_a_segment_is_refused(model):
    with torch.no_grad():
        half = model(IDS[:, :2], segment_ids=ROW[:, :2], use_cache=True).past_key_values
        with pytest.raises(segattn.SegmentError, match="row 0: segment 0 lies on both sides of position 2"):
            model(IDS[:, 2:], segment_ids=ROW, past_key_values=half)
        half = model(IDS[:, :2], segment_ids=ROW[:, :2], use_cache=True).past_key_values
        with pytest.raises(segattn.SegmentError, match="lies on both sides"):
            model(IDS[:, 2:3], segment_ids=ROW[:, :3], past_key_values=half)
        with pytest.raises(segattn.SegmentError, match="enabled without a segmenter"):
            model(IDS[:, 2:], past_key_values=half)
    still_works(model)


def test_generate_without_segments_is_refused(model):
    with pytest.raises(segattn.SegmentError, match=r"generate\(\) got no segment_ids"):
        model.generate(IDS, max_new_tokens=2)
    still_works(model)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flash_attention_3", "paged|sdpa"])
def test_a_backend_that_drops_the_mask_is_refused(implementation):
    stock = build()
    stock.config._attn_implementation_internal = implementation
    with pytest.raises(segattn.UnsupportedModelError, match="would drop or cannot take the segment mask"):
        segattn.enable(stock)


def test_a_backend_switched_after_enable_is_refused(model):
    model.set_attn_implementation("eager")
    with pytest.raises(segattn.UnsupportedModelError, match="changed to 'eager' after"):
        model(IDS, segment_ids=ROW)


def test_a_model_that_never_asks_for_a_mask_is_caught(model):
    """A stand-in for a family that makes its own triangle: the mask of the stock class is hard-wired."""
    backbone = model.model
    causal = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
    stock = type(backbone).forward
    backbone.forward = lambda *args, **kwargs: stock(backbone, *args, **{**kwargs, "attention_mask": causal})
    with pytest.raises(segattn.UnsupportedModelError, match="built no attention mask from the segment ids"):
        model(IDS, segment_ids=ROW)


def test_not_a_model_and_not_a_segmenter():
    with pytest.raises(segattn.UnsupportedModelError, match="Linear holds no transformers model"):
        segattn.enable(torch.nn.Linear(2, 2))
    with pytest.raises(segattn.SegmentError, match="segmenter is a str"):
        segattn.enable(build(), segmenter="turns")


def test_what_needs_an_enabled_model_says_so():
    stock = build()
    with (
        pytest.raises(segattn.UnsupportedModelError, match=r"call segattn.enable\(model\) first"),
        segattn.causal(stock),
    ):
        pass
    with pytest.raises(segattn.UnsupportedModelError, match="not enabled"):
        segattn.modeling.set_opening(stock, -1.0)
    with pytest.raises(segattn.SegmentError, match="expected numbers <= 0"):
        segattn.modeling.set_opening(segattn.enable(stock), 0.5)


def test_disable_gives_the_stock_model_back():
    stock, model = build(), build()
    config, cls, names = model.config, type(model), set(model.__dict__)
    segattn.enable(model)
    assert segattn.is_enabled(model)
    assert type(model) is not cls
    assert type(model).__name__ == cls.__name__
    segattn.disable(model)
    assert not segattn.is_enabled(model)
    assert type(model) is cls
    assert model.config is config
    assert model.model.layers[0].self_attn.config is config
    assert set(model.__dict__) == names
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not model.model._forward_hooks
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, stock(IDS).logits)
    segattn.disable(model)  # twice does no harm


def test_enabling_leaves_other_models_of_the_same_config_alone():
    stock, before = build(), dict(transformers.AttentionInterface._global_mapping)
    twin = type(stock)(stock.config).eval()
    twin.load_state_dict(stock.state_dict())
    with torch.no_grad():
        want = stock(IDS).logits
        segattn.enable(twin)
        assert torch.equal(stock(IDS).logits, want)
    assert stock.config._attn_implementation == "sdpa"
    segattn.disable(twin)
    assert transformers.AttentionInterface._global_mapping == before


def test_two_enabled_models_do_not_share_segments(model):
    other = segattn.enable(build("qwen3"))
    with torch.no_grad():
        want = other(IDS, segment_ids=ROW).logits
        model(IDS, segment_ids=torch.tensor([[0] * 8]))
        assert torch.equal(other(IDS, segment_ids=ROW).logits, want)
    still_works(model)


def test_enabling_twice_is_enabling_once(model):
    assert segattn.enable(model) is model
    still_works(model)
    segattn.disable(model)
    assert not segattn.is_enabled(model)


def test_an_error_inside_the_model_leaves_it_usable(model):
    with pytest.raises(IndexError):
        model(IDS + 1000, segment_ids=ROW)
    still_works(model)


def test_the_stock_config_is_never_changed():
    stock = build()
    before = copy.deepcopy(stock.config.to_dict())
    config = stock.config
    segattn.enable(stock)
    assert config.to_dict() == before


def test_a_mask_prepared_for_other_segments_is_refused(model):
    from transformers import StaticCache

    # Layers that may run slices get no mask ahead.
    model = segattn.enable(segattn.disable(model), backend="dense")
    cache = StaticCache(config=model.config, max_cache_len=16)
    inputs = model.prepare_inputs_for_generation(
        IDS, segment_ids=ROW, past_key_values=cache, attention_mask=torch.ones_like(IDS), is_first_iteration=True
    )
    other = torch.tensor([[0] * 7 + [-1]])
    with pytest.raises(segattn.SegmentError, match="prepared for other segment_ids"):
        model(**{**inputs, "segment_ids": other})
    still_works(model)


@pytest.mark.parametrize("release", ["5.24.0", "5.30.1", "6.0.0.dev0"])
def test_a_release_that_is_too_new_is_refused(release, monkeypatch):
    import transformers

    monkeypatch.setattr(transformers, "__version__", release)
    with pytest.raises(segattn.UnsupportedModelError, match=r"pip install 'transformers>=5.16,<5.24'"):
        segattn.enable(build())
