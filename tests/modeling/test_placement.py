"""Models whose weights lie elsewhere or are stored otherwise: device_map, offloading, quantized layers."""

import copy
import functools

import accelerate
import pytest
import torch
import transformers
from accelerate.hooks import remove_hook_from_submodules

import segattn
from modeling.generating import run_by_hand
from modeling.test_peft import with_adapter
from modeling.tiny import build, hand_mask, tokens

IDS = tokens()
ROWS = [[-1] + [4] * 6 + [0] * 5 + [-1] * 2, [0] * 9 + [-1] * 3 + [1] * 2]
SEGMENTS = torch.tensor(ROWS)
GREEDY = {"max_new_tokens": 4, "do_sample": False}
NAMES = ["llama", "gemma3"]
SPLIT = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


def follows(model, stock):
    """`model` is enabled; `stock` computes the same and is not."""
    with torch.no_grad():
        want = stock(IDS, attention_mask=hand_mask(stock, ROWS, "sdpa")).logits
        got = model(IDS, segment_ids=SEGMENTS).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    made = model.generate(IDS, attention_mask=torch.ones_like(IDS), segment_ids=SEGMENTS, **GREEDY)
    assert torch.equal(made, run_by_hand(stock, "sdpa", IDS, ROWS, **GREEDY))
    with pytest.raises(segattn.SegmentError, match="segment_ids is missing"):
        model(IDS)
    with pytest.raises(segattn.SegmentError, match="is -2"):
        model(IDS, segment_ids=SEGMENTS - 1)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS, segment_ids=SEGMENTS).logits, want, atol=1e-5, rtol=0)


def is_stock(model, stock):
    assert not segattn.is_enabled(model)
    assert type(model) is type(stock)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, stock(IDS).logits)


def load(name, path, device_map):
    build(name).save_pretrained(path / "model")
    return transformers.AutoModelForCausalLM.from_pretrained(
        path / "model", device_map=device_map, offload_folder=path / "offloaded"
    )


@pytest.mark.parametrize("device_map", [{"": "cpu"}, SPLIT], ids=["one device", "cpu and disk"])
@pytest.mark.parametrize("name", NAMES)
def test_enabled_after_the_weights_were_placed(tmp_path, name, device_map):
    model = segattn.enable(load(name, tmp_path, device_map))
    if device_map is SPLIT:
        assert model.model.layers[2].self_attn.q_proj.weight.is_meta, "nothing was offloaded"
    follows(model, build(name))
    is_stock(segattn.disable(model), build(name))


@pytest.mark.filterwarnings("ignore:.*meta device.*")
@pytest.mark.parametrize("name", NAMES)
def test_enabled_before_the_weights_are_placed(tmp_path, name):
    model = segattn.enable(build(name))
    accelerate.dispatch_model(model, SPLIT, offload_dir=tmp_path, force_hooks=True)
    assert model.model.layers[2].self_attn.q_proj.weight.is_meta, "nothing was offloaded"
    follows(model, build(name))
    follows(copy.deepcopy(model), build(name))


def test_an_interrupt_in_an_offloaded_model(tmp_path):
    def interrupt(*args):
        raise KeyboardInterrupt("in a layer")

    model, stock = segattn.enable(load("llama", tmp_path, SPLIT)), build()
    mask = hand_mask(stock, ROWS, "sdpa")
    for call in (model, model.model):
        handle = model.model.layers[1].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt, match="in a layer"):
            call(IDS, segment_ids=torch.zeros_like(IDS))
        handle.remove()
        with torch.no_grad():
            want = stock.model(IDS, attention_mask=mask).last_hidden_state
            got = model.model(IDS, segment_ids=SEGMENTS).last_hidden_state
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
        follows(model, stock)


def test_a_forward_that_was_put_on_the_instance():
    """As libraries with a faster loss do: it must not lose the segments, nor the check of the labels."""
    for first in ("patch", "enable"):
        model = build()
        if first == "enable":
            segattn.enable(model)
        model.forward = functools.partial(transformers.LlamaForCausalLM.forward, model)
        segattn.enable(model)
        follows(model, build())
        with pytest.raises(segattn.LabelLeakError):
            model(IDS, segment_ids=SEGMENTS, labels=IDS)


def test_wrappers_that_outlive_the_segments():
    """accelerate and torch.compile keep the forward that they found; disabling must reach it there."""
    model = segattn.enable(build())
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    is_stock(segattn.disable(model), build())
    follows(segattn.enable(model), build())
    segattn.disable(model)
    remove_hook_from_submodules(model)
    is_stock(model, build())
    follows(segattn.enable(model), build())


class Int8Linear(torch.nn.Module):
    """Stands in for bitsandbytes' or torchao's layers: int8 weights, one scale per row, no float weight."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight_int8", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, hidden):
        return torch.nn.functional.linear(hidden, self.weight_int8 * self.scale)


def with_int8_layers(model):
    """Swap the linear layers of a model, but not those of an adapter on them."""
    layers = model.model.layers
    for name, child in list(layers.named_modules()):
        if type(child) is torch.nn.Linear and "lora" not in name:
            layers.set_submodule(name, Int8Linear(child))
    return model


def with_dynamic_quantization(model):
    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor.*deprecated")
@pytest.mark.parametrize("quantize", [with_int8_layers, with_dynamic_quantization])
@pytest.mark.parametrize("name", NAMES)
def test_quantized_layers(name, quantize):
    stock = quantize(build(name))
    assert {parameter.dtype for layer in stock.model.layers for parameter in layer.self_attn.parameters()} <= {
        torch.float32  # only norms are left
    }
    assert not any(type(module) is torch.nn.Linear for module in stock.model.modules())
    with torch.no_grad():
        assert not torch.equal(stock(IDS).logits, build(name)(IDS).logits)
    follows(segattn.enable(quantize(build(name))), stock)
    is_stock(segattn.disable(segattn.enable(quantize(build(name)))), stock)


@pytest.mark.parametrize("name", NAMES)
def test_layers_quantized_after_enabling(name):
    follows(with_int8_layers(segattn.enable(build(name))), with_int8_layers(build(name)))


def test_an_adapter_on_quantized_layers():
    """As QLoRA: float adapters on layers that are stored as integers; gradients reach the adapters."""
    labels = IDS.masked_fill(SEGMENTS >= 0, -100)
    gradients = []
    for enabled in (False, True):
        model = with_adapter(build())
        with_int8_layers(model.get_base_model())
        given = {"attention_mask": hand_mask(model.get_base_model(), ROWS, "sdpa")}
        if enabled:
            segattn.enable(model)
            given = {"segment_ids": SEGMENTS}
        model(input_ids=IDS, labels=labels, **given).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.requires_grad})
    assert gradients[0]
    for name, want in gradients[0].items():
        assert want.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], want, atol=1e-6, rtol=1e-4)
