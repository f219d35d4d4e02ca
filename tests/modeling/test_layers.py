"""Segments in some layers, and opening biases by layer and head, against stock models with a mask for each layer."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import families.tiny_models
import segattn
from modeling.tiny import build, hand_mask, tokens
from segattn.modeling import probe, set_opening
from segattn.modeling.layer_choice import chosen_layers

ROWS = [[-1] + [4] * 6 + [0] * 5 + [-1] * 2, [0] * 9 + [-1] * 3 + [1] * 2]
CAUSAL = [[-1] * 14] * 2
LEAST = torch.finfo(torch.float32).min


def decoder_layers(model):
    return model.get_decoder().layers


def stock_logits(masks, ids, name="llama", implementation="sdpa"):
    """Logits of a stock model whose layer i runs under masks[i]."""
    model = build(name, implementation)
    handles = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs, mask=mask: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True
        )
        for layer, mask in zip(decoder_layers(model), masks, strict=True)
    ]
    logits = model(ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


def additive(bool_mask):
    return torch.where(bool_mask, 0.0, LEAST)


def plain_masks():
    model = build()
    return additive(hand_mask(model, ROWS, "sdpa")), additive(hand_mask(model, CAUSAL, "sdpa"))


def opened(bias):
    """A mask by hand: 0 on what causal shows, the bias on the keys ahead; bias: a number or (heads,)."""
    segments, causal = plain_masks()
    ahead = (segments == 0) & (causal != 0)
    return torch.where(ahead, torch.as_tensor(bias).view(1, -1, 1, 1), causal)


@pytest.mark.parametrize(
    ("implementation", "backend"), [("sdpa", "auto"), ("sdpa", "dense"), ("sdpa", "sliced"), ("eager", "auto")]
)
@pytest.mark.parametrize("chosen", [[0], [1, 2], "0", "0-2"])
def test_segments_in_some_layers(implementation, backend, chosen):
    ids = tokens()
    segments, causal = plain_masks()
    among = {int(c) for c in chosen} if isinstance(chosen, list) else {"0": {0}, "0-2": {0, 1, 2}}[chosen]
    want = stock_logits([segments if layer in among else causal for layer in range(3)], ids, "llama", implementation)
    model = segattn.enable(build(implementation=implementation), backend=backend, layers=chosen)
    with torch.no_grad():
        got = model(ids, segment_ids=torch.tensor(ROWS)).logits
        everywhere = segattn.enable(build()).forward(ids, segment_ids=torch.tensor(ROWS)).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert (len(among) == 3) == bool((got - everywhere).abs().max() < 1e-5), "the choice must matter"


def test_a_bias_of_each_layer():
    ids = tokens()
    want = stock_logits([opened(-3.0), plain_masks()[0], opened(-0.5)], ids)
    model = segattn.enable(build())
    set_opening(model, torch.tensor([-3.0, 0.0, -0.5]))
    with torch.no_grad():
        torch.testing.assert_close(model(ids, segment_ids=torch.tensor(ROWS)).logits, want, atol=1e-5, rtol=0)
    set_opening(model, torch.tensor([float("-inf"), -1.0, 0.0]))
    want = stock_logits([plain_masks()[1], opened(-1.0), plain_masks()[0]], ids)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, segment_ids=torch.tensor(ROWS)).logits, want, atol=1e-5, rtol=0)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(-9, 0, width=32), min_size=12, max_size=12))
def test_a_bias_of_each_head(numbers):
    ids = tokens()
    bias = torch.tensor(numbers).view(3, 4)
    model = segattn.enable(build())
    set_opening(model, bias)
    with torch.no_grad():
        got = model(ids, segment_ids=torch.tensor(ROWS)).logits
    torch.testing.assert_close(got, stock_logits([opened(row) for row in bias], ids), atol=1e-5, rtol=0)


def test_a_learned_bias_gets_the_gradient_that_a_hand_built_mask_gets():
    ids, gradients = tokens(), []
    for by_hand in (False, True):
        bias = torch.linspace(-3, -0.5, 12).view(3, 4).requires_grad_()
        if by_hand:
            logits = stock_logits([opened(row) for row in bias], ids)
        else:
            model = segattn.enable(build())
            set_opening(model, bias)
            logits = model(ids, segment_ids=torch.tensor(ROWS)).logits
        (gradient,) = torch.autograd.grad(logits.square().sum(), bias)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    assert (gradients[0].abs() > 1e-3).all()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_keeps_each_layers_mask(reentrant):
    ids, gradients = tokens(), []
    for checkpointed in (False, True):
        model = segattn.enable(build(), layers=[1]).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(inputs_embeds=model.get_input_embeddings()(ids), segment_ids=torch.tensor(ROWS)).logits.sum().backward()
        gradients.append(decoder_layers(model)[0].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["qwen3", "mistral-window", "gemma3"])
def test_the_probe_sees_the_choice_in_other_families(name):
    model = segattn.enable(build(name), layers=[0])
    ids = tokens()
    with torch.no_grad():
        some = model(ids, segment_ids=torch.tensor(ROWS)).logits
        every = segattn.enable(build(name))(ids, segment_ids=torch.tensor(ROWS)).logits
    assert (some - every).abs().max() > 1e-4
    assert probe(model).status == "exact"


def test_the_probe_finds_a_layer_that_does_not_keep_to_the_choice():
    model = build()
    decoder_layers(model)[0].self_attn.layer_idx = 1  # as if it were told the wrong place
    with pytest.raises(segattn.UnsupportedModelError, match="layers"):
        segattn.enable(model, layers=[1])
    assert not segattn.is_enabled(model)


def test_information_flows_ahead_in_the_chosen_layer_alone():
    """With segments in the last layer alone, a later token moves earlier ones there and not before."""
    ids = tokens(1)
    hidden = {}
    for changed in (False, True):
        model = segattn.enable(build(), layers=[2])
        given_ids = ids.clone()
        if changed:
            given_ids[0, 6] += 1
        with torch.no_grad():
            hidden[changed] = model(given_ids, segment_ids=torch.tensor(ROWS[:1]), output_hidden_states=True)
    moved = [
        (one - other).abs().amax(-1)[0] > 1e-6
        for one, other in zip(hidden[False].hidden_states[:3], hidden[True].hidden_states[:3], strict=True)
    ]
    assert not moved[2][:6].any()
    last = (hidden[False].logits - hidden[True].logits).abs().amax(-1)[0] > 1e-6
    assert last[1:6].all()
    assert not last[0]


def test_generation_prefills_with_each_layers_mask():
    ids = tokens(1, 10)
    row = [0] * 8 + [-1] * 2
    model = segattn.enable(build(), layers=[1])
    got = model.generate(ids, segment_ids=torch.tensor([row]), max_new_tokens=4, do_sample=False)
    with torch.no_grad():
        for length in range(10, 14):
            ids_of = torch.tensor([row + [-1] * (length - 10)])
            assert model(got[:, :length], segment_ids=ids_of).logits[0, -1].argmax() == got[0, length]


def test_a_checkpoint_records_its_layers(tmp_path, smollm2_tokenizer):
    tokenizer = smollm2_tokenizer
    segmenter = segattn.Segmenter.from_tokenizer(tokenizer)
    model = segattn.enable(build(vocab_size=len(tokenizer)), segmenter, layers=[1])
    tokenizer.save_pretrained(tmp_path)
    segattn.save_pretrained(model, tmp_path)
    entry = json.loads((tmp_path / "config.json").read_text())["segment_attention"]
    assert entry["format"] == 2
    assert entry["layers"] == [1]
    loaded, _ = segattn.from_pretrained(tmp_path)
    ids = tokens()
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(ids, segment_ids=torch.tensor(ROWS)).logits, model(ids, segment_ids=torch.tensor(ROWS)).logits
        )


def test_an_adapter_brings_its_layers_along(tmp_path):
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(build(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    segattn.enable(wrapped, layers=[1])
    wrapped.save_pretrained(tmp_path / "some")
    assert json.loads((tmp_path / "some" / "segment_attention.json").read_text())["layers"] == [1]

    other = get_peft_model(build(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    segattn.enable(other)
    other.load_adapter(str(tmp_path / "some"), "some")
    other.set_adapter("some")
    ids = tokens()
    with torch.no_grad():
        want = wrapped(input_ids=ids, segment_ids=torch.tensor(ROWS)).logits
        got = other(input_ids=ids, segment_ids=torch.tensor(ROWS)).logits
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
    assert probe(other).status == "exact"
    merged = other.merge_and_unload(adapter_names=["some"])
    assert merged.config.segment_attention["layers"] == [1]


def test_what_cannot_tell_layers_apart_refuses():
    with pytest.raises(segattn.UnsupportedModelError, match="attention does not come from the attention function"):
        segattn.enable(families.tiny_models.build("falcon", "sdpa"), layers=[0])
    with pytest.raises(segattn.UnsupportedModelError, match="some of its layers"):
        segattn.enable(build(implementation="flex_attention"), layers=[0])
    dense = segattn.enable(build(), backend="dense")
    with pytest.raises(segattn.UnsupportedModelError, match="one number for all"):
        set_opening(dense, torch.tensor([-1.0, 0.0, 0.0]))
    model = segattn.enable(build())
    for bias in (torch.tensor([-1.0]), torch.zeros(3, 3), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([-1, 0, 0])):
        with pytest.raises(segattn.SegmentError, match="opening bias"):
            set_opening(model, bias)
    with pytest.raises(segattn.SegmentError, match="before enabling it with segments in the layers 0"):
        segattn.enable(model, layers=[0])


def test_ranges_of_layers():
    assert chosen_layers("0-2,5", 6) == (0, 1, 2, 5)
    assert chosen_layers([3, 1, 3], 6) == (1, 3)
    assert chosen_layers("0-5", 6) is None
    assert chosen_layers(None, 6) is None


@pytest.mark.parametrize("layers", ["", "2-1", "a", "0-6", "-1", [], [6], [-1], [True], [0.5]])
def test_no_layers(layers):
    with pytest.raises(segattn.SegmentError, match="layers is"):
        chosen_layers(layers, 6)


@given(st.sets(st.integers(0, 40), min_size=1))
def test_a_list_written_as_text_is_that_list(layers):
    assert chosen_layers(",".join(map(str, layers)), 50) == chosen_layers(layers, 50)
