"""Prefixes in a file: what comes back, for whom, and what a damaged file says."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file

import segattn
from generation.serving import MANY, ask, ask_by_hand, check, make, prompt, words
from modeling.generating import assert_same, build
from segattn.generation import PrefixCacheError
from segattn.generation.model_identity import weights_digest

SYSTEM, FIRST, HEADER = words(9, 1), words(5, 3), words(2, 5)
CHAT = prompt((SYSTEM, True), (FIRST, True), (HEADER, False))
OTHER = prompt((SYSTEM, True), (HEADER + FIRST, False))


@pytest.fixture
def saved(tmp_path):
    model, cache = make()
    for row in (CHAT, OTHER):
        ask(model, cache, [row])
    cache.save(tmp_path / "prefixes.safetensors")
    return tmp_path / "prefixes.safetensors"


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_what_was_known_is_known_again(name, tmp_path):
    model, cache = make(name)
    for row in (CHAT, OTHER):
        ask(model, cache, [row])
    cache.save(tmp_path / "file")
    again = segattn.enable(build(name))
    loaded = segattn.PrefixCache.load(tmp_path / "file", again, max_bytes=MANY)
    assert (loaded.stats().bytes, len(loaded)) == (cache.stats().bytes, len(cache))
    for row in (CHAT, OTHER):
        assert check(name, again, loaded, [row])[1] == len(row[0]) - 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_is_replaced_only_when_it_is_complete(saved, monkeypatch):
    before = saved.read_bytes()
    _, cache = make()

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(PrefixCacheError, match="cannot be written"):
        cache.save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
    monkeypatch.undo()
    cache.save(saved)
    assert len(segattn.PrefixCache.load(saved, segattn.enable(build()), max_bytes=MANY)) == 0
    with pytest.raises(PrefixCacheError, match="expected a file in a folder that exists"):
        cache.save(saved.parent / "nowhere" / "file")


def test_the_file_says_what_it_is_for(saved):
    with safe_open(str(saved), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "segattn-prefixes-1"
    assert metadata["segattn"] == segattn.__version__
    assert (metadata["model"], metadata["adapters"], metadata["dtype"]) == ("LlamaForCausalLM", "", "torch.float32")


def test_a_smaller_cache_takes_what_fits(saved):
    model = segattn.enable(build())
    whole = segattn.PrefixCache.load(saved, model, max_bytes=MANY).stats()
    for part in range(1, 8):
        limit = whole.bytes * part // 7
        cache = segattn.PrefixCache.load(saved, model, max_bytes=limit)
        assert cache.stats().bytes <= limit
        for row in (CHAT, OTHER):
            assert_same(ask(model, cache, [row]), ask_by_hand("llama", [row]))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: build("qwen3"), r"other model \(LlamaForCausalLM\) than this one's \(Qwen3ForCausalLM\)"),
        (lambda: build(rms_norm_eps=1e-3), "other config"),
        (lambda: build(seed=1), "other weights"),
        (lambda: build().to(torch.bfloat16), r"other dtype \(torch.float32\) than this one's \(torch.bfloat16\)"),
        (lambda: _tuned(), r"other adapters \(none\) than this one's \(active .*default"),
        (lambda: _one_weight_moved(), "other weights"),
    ],
    ids=["class", "config", "weights", "dtype", "adapter", "one matrix"],
)
def test_a_file_of_another_model_names_what_differs(saved, other, message):
    with pytest.raises(PrefixCacheError, match=message):
        segattn.PrefixCache.load(saved, segattn.enable(other()), max_bytes=MANY)


def _tuned():
    return get_peft_model(build(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))


def _one_weight_moved():
    model = build()
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight.add_(1e-4)
    return model


def test_an_adapter_s_prefixes_come_back_for_that_adapter(tmp_path):
    torch.manual_seed(0)
    model = segattn.enable(_tuned())
    cache = segattn.PrefixCache(model, max_bytes=MANY)
    inputs = {"input_ids": torch.tensor([CHAT[0]]), "segment_ids": torch.tensor([CHAT[1]]), "max_new_tokens": 3}
    model.generate(**inputs, prefix_cache=cache, do_sample=False)
    cache.save(tmp_path / "file")
    assert len(segattn.PrefixCache.load(tmp_path / "file", model, max_bytes=MANY)) == len(cache)
    with model.disable_adapter(), pytest.raises(PrefixCacheError, match="other adapters"):
        segattn.PrefixCache.load(tmp_path / "file", model, max_bytes=MANY)


def test_weights_that_changed_since_are_not_saved_as_known(tmp_path):
    model, cache = make()
    ask(model, cache, [CHAT])
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    cache.save(tmp_path / "file")
    assert len(segattn.PrefixCache.load(tmp_path / "file", model, max_bytes=MANY)) == 0


def test_the_digest_reads_tensors_that_floats_cannot_count(monkeypatch):
    large = torch.nn.Module()
    large.weight = torch.nn.Parameter(torch.zeros(2**24 + 5, dtype=torch.bfloat16))
    before = weights_digest(large)
    with torch.no_grad():
        large.weight[-1] = 1
    assert weights_digest(large) != before


def _damage(path, how):
    with safe_open(str(path), framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    how(metadata, tensors)
    save_file(tensors, str(path), metadata=metadata)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is no complete file of prefixes"),
        (lambda path: path.write_bytes(b""), "is no complete file of prefixes"),
        (lambda path: path.write_text("not one"), "is no complete file of prefixes"),
        (lambda path: path.unlink(), "there is no file"),
        (
            lambda path: save_file({"a": torch.zeros(1)}, str(path)),
            "holds 'no prefixes'; expected 'segattn-prefixes-1'",
        ),
        (lambda path: _damage(path, lambda meta, _: meta.update(format="segattn-prefixes-9")), "'segattn-prefixes-9'"),
        (lambda path: _damage(path, lambda meta, _: meta.update(pieces="[[5, 1]]")), "piece 0 does not fit its place"),
        (lambda path: _damage(path, lambda meta, _: meta.update(pieces="{")), "is no complete file"),
        (lambda path: _damage(path, lambda meta, _: meta.pop("layers")), "is no complete file"),
        (lambda path: _damage(path, lambda _, tensors: tensors.pop("0.tokens")), "is no complete file"),
        (
            lambda path: _damage(path, lambda _, tensors: tensors.update({"0.1.keys": torch.zeros(1, 2, 3, 8)})),
            "piece 0 does not fit its place",
        ),
    ],
    ids=["cut off", "empty", "text", "gone", "other", "later format", "order", "json", "layers", "tokens", "shape"],
)
def test_a_damaged_file_is_an_error_that_says_so(saved, how, message):
    how(saved)
    with pytest.raises(PrefixCacheError, match=message) as raised:
        segattn.PrefixCache.load(saved, segattn.enable(build()), max_bytes=MANY)
    assert str(saved) in str(raised.value)
    assert isinstance(raised.value, segattn.SegmentAttentionError)
    json.dumps(str(raised.value))
