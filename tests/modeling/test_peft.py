"""Adapters: wrapped before or after enabling, merged, switched off, saved and loaded."""

import peft
import pytest
import torch

import segattn
from modeling.tiny import build, hand_mask, tokens

IDS = tokens()
ROWS = [[-1] + [4] * 6 + [0] * 5 + [-1] * 2, [0] * 9 + [-1] * 3 + [1] * 2]
SEGMENTS = torch.tensor(ROWS)


def with_adapter(model, seed=1, **options):
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)
    wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:  # zero at first: make the adapter do something
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if "lora_A" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return wrapped.eval()


def stock_logits():
    model = with_adapter(build())
    with torch.no_grad():
        return model(IDS, attention_mask=hand_mask(model.get_base_model(), ROWS, "sdpa")).logits


@pytest.mark.parametrize("order", ["adapter first", "enable first"])
def test_logits_and_tokens_equal_a_stock_peft_model_with_a_hand_built_mask(order):
    model = segattn.enable(with_adapter(build())) if order == "adapter first" else with_adapter(segattn.enable(build()))
    assert segattn.is_enabled(model)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS, segment_ids=SEGMENTS).logits, stock_logits(), atol=1e-5, rtol=0)
        cached = model.generate(input_ids=IDS, segment_ids=SEGMENTS, max_new_tokens=5, do_sample=False)
        bare = model.generate(input_ids=IDS, segment_ids=SEGMENTS, max_new_tokens=5, do_sample=False, use_cache=False)
    assert torch.equal(cached, bare)
    with pytest.raises(segattn.SegmentError, match="segment_ids is missing"):
        model(input_ids=IDS)


def test_the_adapter_switched_off_still_follows_segments():
    model = segattn.enable(with_adapter(build()))
    base = build()
    with torch.no_grad(), model.disable_adapter():
        got = model(input_ids=IDS, segment_ids=SEGMENTS).logits
        want = base(IDS, attention_mask=hand_mask(base, ROWS, "sdpa")).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_merging_keeps_the_segments():
    model = segattn.enable(with_adapter(build())).merge_and_unload()
    assert segattn.is_enabled(model)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS, segment_ids=SEGMENTS).logits, stock_logits(), atol=1e-4, rtol=0)


def test_gradients_reach_the_adapter_and_nothing_else():
    gradients = []
    labels = IDS.masked_fill(SEGMENTS >= 0, -100)
    for enabled in (False, True):
        model = with_adapter(build())
        mask = {"attention_mask": hand_mask(model.get_base_model(), ROWS, "sdpa")}
        if enabled:
            segattn.enable(model)
            mask = {"segment_ids": SEGMENTS}
        model(input_ids=IDS, labels=labels, **mask).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        assert all("lora_" in name for name in gradients[-1])
    for name, want in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], want, atol=1e-6, rtol=1e-4)


def test_disable_gives_the_stock_peft_model_back():
    model = with_adapter(build())
    cls = type(model)
    segattn.disable(segattn.enable(model))
    assert type(model) is cls
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, with_adapter(build())(input_ids=IDS).logits)


def test_virtual_tokens_are_refused():
    config = peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    with pytest.raises(segattn.UnsupportedModelError, match=r"PREFIX_TUNING.*virtual tokens"):
        segattn.enable(peft.get_peft_model(build(), config))
