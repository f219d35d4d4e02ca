"""The probe against sabotaged models, and its readings against a double loop."""

import importlib
import sys

import pytest
import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface

import segattn
from modeling.tiny import CASES, WINDOW, build, tokens
from oracle import loop_mask
from segattn.modeling import probe
from segattn.modeling.probe import decoder_layers, read_layers

ROW = [-1, 4, 4, 4, 4, 4, 0, 0, 0, -1, -1]


def columns(length):
    return list(range(length))


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_a_reading_is_the_mask_of_the_layer(name, implementation):
    model = segattn.enable(build(name, implementation))
    ids = tokens(1, len(ROW))
    layers = decoder_layers(model)
    assert [layer.name for layer in layers] == [f"model.layers.{number}" for number in range(3)]
    found = read_layers(model, layers, ids, columns(len(ROW)), segment_ids=torch.tensor([ROW]))
    kinds = getattr(model.config, "layer_types", None) or [None] * 3
    for layer, kind in zip(layers, kinds, strict=True):
        local = kind == "sliding_attention" or name == "mistral-window"
        want = loop_mask([ROW], window=WINDOW if local else None)[0, 0]
        (reading,) = found[layer.name]
        assert torch.equal(reading.sees, want), layer.name


@pytest.mark.parametrize(("name", "implementation"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_verified_families_pass(name, implementation, dtype):
    model = build(name, implementation).to(dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    verdict = probe(model.train())
    assert verdict.status == "exact", verdict.reason
    assert len(verdict.layers) == 3
    assert model.training
    assert not segattn.is_enabled(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_long_probe_reaches_past_a_window():
    verdict = probe(build("gemma3"), length=40)
    assert verdict.status == "exact", verdict.reason


def test_an_enabled_model_can_be_probed_and_stays_enabled():
    model = segattn.enable(build())
    assert probe(model).status == "exact"
    assert segattn.is_enabled(model)


# Sabotage. Each changes a model so that segments are dropped in silence somewhere.


def drop_masks(model, numbers):
    """The layers with these numbers run causally, whatever mask they are given."""
    for number in numbers:
        attention = model.model.layers[number].self_attn
        stock = attention.forward

        def forward(hidden_states, *args, stock=stock, **kwargs):
            return stock(hidden_states, *args, **{**kwargs, "attention_mask": None})

        attention.forward = forward
    return model


def keep_first_mask(model):
    """Every layer keeps the mask of its first call, as code does that builds the mask once per length."""
    for layer in model.model.layers:
        stock, kept = layer.self_attn.forward, []

        def forward(hidden_states, *args, stock=stock, kept=kept, **kwargs):
            kept.append(kwargs.get("attention_mask"))
            mask = kept[0]
            if mask is not None:
                mask = mask[:1].expand(hidden_states.shape[0], -1, -1, -1)
            return stock(hidden_states, *args, **{**kwargs, "attention_mask": mask})

        layer.self_attn.forward = forward
    return model


def see_everything(model):
    """One layer without any mask: it sees later segments."""
    attention = model.model.layers[1].self_attn
    stock = attention.forward

    def forward(hidden_states, *args, **kwargs):
        length = hidden_states.shape[1]
        mask = torch.ones(hidden_states.shape[0], 1, length, length, dtype=torch.bool)
        return stock(hidden_states, *args, **{**kwargs, "attention_mask": mask})

    attention.forward = forward
    return model


def mix_embeddings(model):
    """The layers are right, but each embedding holds something of the next token's."""
    stock = model.model.embed_tokens.forward

    def forward(ids):
        found = stock(ids)
        return found + 0.5 * torch.cat([found[:, 1:], found[:, :1]], dim=1)

    model.model.embed_tokens.forward = forward
    return model


SABOTAGES = {
    "every mask dropped": (lambda model: drop_masks(model, range(3)), r"layers\.0: the segment mask did not arrive"),
    "half of the masks dropped": (lambda model: drop_masks(model, [1]), r"layers\.1: the segment mask did not arrive"),
    "the first mask is kept": (keep_first_mask, r"layers\.0: .*"),
    "no mask at all": (see_everything, r"layers\.1: .*sees token"),
    "outside of the layers": (mix_embeddings, "the output at token 0 depends on token 1"),
}


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize(("sabotage", "message"), SABOTAGES.values(), ids=SABOTAGES)
def test_a_sabotaged_model_is_refused(name, sabotage, message):
    model = sabotage(build(name))
    with pytest.raises(segattn.UnsupportedModelError, match=message):
        segattn.enable(model)
    assert not segattn.is_enabled(model)
    assert type(model).__name__ == type(build(name)).__name__
    with pytest.raises(segattn.UnsupportedModelError, match=message):  # and once more: nothing was learned wrongly
        segattn.enable(model)


def test_an_attention_kernel_that_ignores_masks_is_refused(monkeypatch):
    """What FlashAttention 2 does when it is registered over a stock name."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def flash(module, query, key, value, attention_mask, **kwargs):
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", flash)
    with pytest.raises(segattn.UnsupportedModelError, match="the segment mask did not arrive"):
        segattn.enable(build())


def test_a_mask_function_that_drops_the_pattern_is_refused(monkeypatch):
    from transformers.masking_utils import flash_attention_mask

    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "sdpa", flash_attention_mask)
    with pytest.raises(segattn.UnsupportedModelError, match="the segment mask did not arrive"):
        segattn.enable(build())


def test_a_patched_class_is_probed(monkeypatch):
    """A method replaced on the class, as kernel libraries do it for every instance."""
    cls = type(build().model.layers[0].self_attn)
    stock = cls.forward

    def forward(self, hidden_states, *args, **kwargs):
        return stock(self, hidden_states, *args, **{**kwargs, "attention_mask": None})

    forward.__module__ = "kernels_from_elsewhere"
    monkeypatch.setattr(cls, "forward", forward)
    with pytest.raises(segattn.UnsupportedModelError, match="the segment mask did not arrive"):
        segattn.enable(build())


def test_verified_classes_are_not_probed(monkeypatch):
    enabling = importlib.import_module("segattn.modeling.enable")  # the package has a function of this name

    monkeypatch.setattr(enabling, "judge", None)
    segattn.enable(build())

    class Derived(transformers.LlamaForCausalLM):
        pass

    model = build()
    model.__class__ = Derived
    with pytest.raises(TypeError):  # judge is None: it was asked for
        segattn.enable(model)


@pytest.mark.parametrize("release", ["5.15.0", "5.22.0"])
def test_another_release_of_transformers_is_probed(monkeypatch, release):
    enabling = importlib.import_module("segattn.modeling.enable")  # the package has a function of this name

    asked = []
    judge = enabling.judge
    monkeypatch.setattr(enabling, "judge", lambda *args: asked.append(args) or judge(*args))
    monkeypatch.setattr(sys.modules["transformers"], "__version__", release)  # a lazy module: `transformers` is a copy
    segattn.enable(build())
    assert asked


def test_a_model_that_raises_is_refused_with_its_error():
    model = build()

    def forward(*args, **kwargs):
        raise RuntimeError("needs a picture")

    model.model.layers[2].forward = forward
    with pytest.raises(segattn.UnsupportedModelError, match="needs a picture"):
        segattn.enable(model)
