"""Adapters: wrapped before or after enabling, merged, switched off, saved and loaded."""

import copy
import json
import pickle

import peft
import pytest
import torch

import segattn
from cli.tiny_chat import make_tokenizer
from modeling.generating import run_by_hand
from modeling.tiny import build, hand_mask, tokens
from segattn.modeling.segmentation_entry import SEGMENTATION_FILE

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


METHODS = {
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj"], init_lora_weights=False),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], init_ia3_weights=False),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=["q_proj"], init_weights=False),
    "oft": lambda: peft.OFTConfig(target_modules=["q_proj"], oft_block_size=8, init_weights=False),
    "a whole layer beside": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False
    ),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("order", ["adapter first", "enable first"])
def test_other_methods_that_adapt_weights(method, order):
    def adapted(model):
        torch.manual_seed(3)
        return peft.get_peft_model(model, method()).eval()

    stock = adapted(build())
    model = segattn.enable(adapted(build())) if order == "adapter first" else adapted(segattn.enable(build()))
    mask = hand_mask(stock.get_base_model(), ROWS, "sdpa")
    with torch.no_grad():
        want, plain = stock(input_ids=IDS, attention_mask=mask).logits, build()(IDS, attention_mask=mask).logits
        got = model(input_ids=IDS, segment_ids=SEGMENTS).logits
    assert (want - plain).abs().max() > 1e-3, "the adapter must do something"
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_gradient_checkpointing_of_an_adapter(name, reentrant):
    labels = IDS.masked_fill(SEGMENTS >= 0, -100)
    gradients = []
    for enabled in (False, True):
        model = with_adapter(build(name)).train()
        given = {"attention_mask": hand_mask(model.get_base_model(), ROWS, "sdpa")}
        if enabled:
            segattn.enable(model)
            given = {"segment_ids": SEGMENTS}
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(input_ids=IDS, labels=labels, use_cache=False, **given).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for key, want in gradients[0].items():
        assert want.abs().max() > 0, key
        torch.testing.assert_close(gradients[1][key], want, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("order", ["adapter first", "enable first"])
def test_what_merging_and_unloading_give_back(order):
    def adapted():
        model = build()
        return segattn.enable(with_adapter(model)) if order == "adapter first" else with_adapter(segattn.enable(model))

    merged, base = adapted().merge_and_unload(), adapted().unload()
    stock, plain = with_adapter(build()).merge_and_unload(), build()
    for model, like in ((merged, stock), (base, plain)):
        assert segattn.is_enabled(model)
        with torch.no_grad():
            want = like(IDS, attention_mask=hand_mask(like, ROWS, "sdpa")).logits
            torch.testing.assert_close(model(IDS, segment_ids=SEGMENTS).logits, want, atol=1e-5, rtol=0)
        made = model.generate(
            IDS, attention_mask=torch.ones_like(IDS), segment_ids=SEGMENTS, max_new_tokens=4, do_sample=False
        )
        assert torch.equal(made, run_by_hand(like, "sdpa", IDS, ROWS, max_new_tokens=4, do_sample=False))
        with pytest.raises(segattn.SegmentError, match="segment_ids is missing"):
            model(IDS)
        segattn.disable(model)
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, like(IDS).logits)


def test_merging_in_place_and_back():
    model, stock = segattn.enable(with_adapter(build())), with_adapter(build())
    mask = hand_mask(stock.get_base_model(), ROWS, "sdpa")
    with torch.no_grad():
        want = stock(input_ids=IDS, attention_mask=mask).logits
        for change in (model.merge_adapter, model.unmerge_adapter):
            change()
            torch.testing.assert_close(model(input_ids=IDS, segment_ids=SEGMENTS).logits, want, atol=1e-4, rtol=0)


def test_a_second_adapter_on_an_enabled_model():
    def two():
        model = with_adapter(build())
        torch.manual_seed(9)
        config = peft.LoraConfig(r=4, target_modules=["v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        return model, lambda: model.add_adapter("second", config)

    (stock, add_to_stock), (model, add) = two(), two()
    segattn.enable(model)
    for add_second in (add_to_stock, add):
        torch.manual_seed(9)
        add_second()
    mask = hand_mask(stock.get_base_model(), ROWS, "sdpa")
    seen = []
    for name in ("second", "default"):
        stock.set_adapter(name)
        model.set_adapter(name)
        with torch.no_grad():
            want = stock(input_ids=IDS, attention_mask=mask).logits
            torch.testing.assert_close(model(input_ids=IDS, segment_ids=SEGMENTS).logits, want, atol=1e-5, rtol=0)
        seen.append(want)
    assert (seen[0] - seen[1]).abs().max() > 1e-2
    model.delete_adapter("second")
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS, segment_ids=SEGMENTS).logits, seen[1], atol=1e-5, rtol=0)


VIRTUAL = {
    "prefix tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "a prefix longer than the prompt": lambda: peft.PrefixTuningConfig(num_virtual_tokens=20, task_type="CAUSAL_LM"),
    "prompt tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "p-tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("config", VIRTUAL.values(), ids=VIRTUAL)
def test_virtual_tokens_are_refused(config):
    with pytest.raises(segattn.UnsupportedModelError, match=r"P\w*_TUNING.*virtual tokens"):
        segattn.enable(peft.get_peft_model(build(), config()))


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@pytest.mark.parametrize("config", VIRTUAL.values(), ids=VIRTUAL)
def test_virtual_tokens_around_an_enabled_model_are_refused(config):
    inner = segattn.enable(build())
    with torch.no_grad():
        want = inner(IDS, segment_ids=SEGMENTS).logits
    model = peft.get_peft_model(inner, config()).eval()
    with pytest.raises(segattn.UnsupportedModelError, match=r"P\w*_TUNING.*virtual tokens"):
        model(input_ids=IDS, segment_ids=SEGMENTS)
    with pytest.raises(segattn.UnsupportedModelError, match=r"P\w*_TUNING.*virtual tokens"):
        model.generate(
            input_ids=IDS, attention_mask=torch.ones_like(IDS), segment_ids=SEGMENTS, max_new_tokens=2, do_sample=False
        )
    # The model inside, without the virtual tokens, goes on.
    with torch.no_grad():
        assert torch.equal(inner(IDS, segment_ids=SEGMENTS).logits, want)


def test_a_virtual_token_model_that_runs_around_a_call_of_another_model():
    """Only the model inside of the wrapper gets the virtual tokens."""
    outer = peft.get_peft_model(build(), VIRTUAL["prompt tuning"]()).eval()
    inner = segattn.enable(build())
    seen = []

    def run(*args):
        with torch.no_grad():
            seen.append(inner(inputs_embeds=inner.get_input_embeddings()(IDS), segment_ids=SEGMENTS).logits)

    outer.get_base_model().model.layers[0].register_forward_hook(run)
    outer(input_ids=IDS)
    with torch.no_grad():
        torch.testing.assert_close(seen[0], inner(IDS, segment_ids=SEGMENTS).logits, atol=1e-6, rtol=0)


CHAT = [
    {"role": "system", "content": "Ab."},
    {"role": "user", "content": "c?"},
    {"role": "assistant", "content": "d"},
    {"role": "user", "content": "Efg?"},
]


@pytest.fixture(scope="module")
def chat():
    """The tokens of a chat, and its rows under each policy: written out by hand, not by a segmenter."""
    tokenizer = make_tokenizer()
    ids, rows = [], {"turns": [], "prefix": []}
    for message, turn, joined in zip(CHAT, (0, 1, -1, 2), (0, 0, -1, 1), strict=True):
        new = tokenizer(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n").input_ids
        ids += new
        rows["turns"] += [turn] * len(new)
        rows["prefix"] += [joined] * len(new)
    return torch.tensor([ids]), {policy: [row] for policy, row in rows.items()}


def base():
    return build(vocab_size=258)


def save_adapter(path, seed, policy):
    """An adapter on disk, saved with a segmentation or, without a policy, by PEFT alone."""
    model = with_adapter(base(), seed)
    if policy is None:
        model.save_pretrained(path)
    else:
        segmenter = segattn.Segmenter.from_tokenizer(make_tokenizer(), policy=policy)
        segattn.save_pretrained(segattn.enable(model, segmenter), path)


def wanted(chat, seed, policy):
    ids, rows = chat
    stock = with_adapter(base(), seed)
    with torch.no_grad():
        return stock(input_ids=ids, attention_mask=hand_mask(stock.get_base_model(), rows[policy], "sdpa")).logits


def got(model, chat, **inputs):
    with torch.no_grad():
        return model(input_ids=chat[0], **inputs).logits


@pytest.fixture
def several(tmp_path, chat):
    """An enabled model with adapters that were saved under "turns", "prefix", and causally."""
    for seed, (name, policy) in enumerate({"turns": "turns", "prefix": "prefix", "causally": None}.items()):
        save_adapter(tmp_path / name, seed, policy)
    first = peft.PeftModel.from_pretrained(base(), str(tmp_path / "turns"))
    model = segattn.enable(first.eval(), segattn.Segmenter.from_tokenizer(make_tokenizer()))
    model.load_adapter(str(tmp_path / "prefix"), adapter_name="second")
    model.load_adapter(str(tmp_path / "causally"), "third")
    return model


def test_each_adapter_brings_its_own_segmentation(several, chat):
    assert (wanted(chat, 1, "turns") - wanted(chat, 1, "prefix")).abs().max() > 1e-2
    for name, seed, policy in (("default", 0, "turns"), ("second", 1, "prefix"), ("default", 0, "turns")):
        several.set_adapter(name)
        torch.testing.assert_close(got(several, chat), wanted(chat, seed, policy), atol=1e-5, rtol=0)
        assert segattn.modeling.segmenter_of(several).policy == policy
    several.set_adapter("second")
    made = several.generate(
        input_ids=chat[0], attention_mask=torch.ones_like(chat[0]), max_new_tokens=4, do_sample=False
    )
    stock = with_adapter(base(), 1).get_base_model()
    assert torch.equal(
        made, run_by_hand(stock, "sdpa", *chat[:1], chat[1]["prefix"], max_new_tokens=4, do_sample=False)
    )


def test_an_adapter_without_a_segmentation_runs_only_causally(several, chat):
    several.set_adapter("third")
    for given in ({}, {"segment_ids": torch.tensor(chat[1]["turns"])}):
        with pytest.raises(segattn.SegmentError, match="'third' is active and was saved without a segmentation"):
            got(several, chat, **given)
        with pytest.raises(segattn.SegmentError, match="'third' is active"):
            several.generate(input_ids=chat[0], max_new_tokens=2, **given)
    stock = with_adapter(base(), 2)
    with segattn.causal(several):
        torch.testing.assert_close(got(several, chat), got(stock, chat), atol=1e-5, rtol=0)
    several.set_adapter("default")
    torch.testing.assert_close(got(several, chat), wanted(chat, 0, "turns"), atol=1e-5, rtol=0)
    # On purpose, for all: the user's word counts.
    several.set_adapter("third")
    segattn.enable(several, segattn.Segmenter.from_tokenizer(make_tokenizer(), policy="prefix"))
    torch.testing.assert_close(got(several, chat), wanted(chat, 2, "prefix"), atol=1e-5, rtol=0)


def test_adapters_that_disagree_do_not_run_together(several, chat):
    several.base_model.set_adapter(["default", "second"])
    with pytest.raises(segattn.SegmentError, match="'default' and 'second' are both active"):
        got(several, chat)
    with several.disable_adapter():
        stock = base()
        with torch.no_grad():
            want = stock(chat[0], attention_mask=hand_mask(stock, chat[1]["turns"], "sdpa")).logits
        torch.testing.assert_close(got(several, chat), want, atol=1e-5, rtol=0)


def test_merging_keeps_the_segmentation_of_what_is_merged(several, chat):
    several.set_adapter("third")
    with pytest.raises(segattn.SegmentError, match="'third' is active"):
        several.merge_and_unload()
    several.set_adapter("second")
    merged = several.merge_and_unload()
    assert segattn.modeling.segmenter_of(merged).policy == "prefix"
    torch.testing.assert_close(got(merged, chat), wanted(chat, 1, "prefix"), atol=1e-4, rtol=0)


def test_each_adapter_is_saved_with_its_own_segmentation(several, chat, tmp_path):
    several.save_pretrained(str(tmp_path / "all"))

    def policy(folder):
        file = folder / SEGMENTATION_FILE
        return json.loads(file.read_text())["segmenter"]["policy"] if file.exists() else None

    assert policy(tmp_path / "all") == "turns"
    assert policy(tmp_path / "all" / "second") == "prefix"
    assert policy(tmp_path / "all" / "third") is None
    model = segattn.enable(with_adapter(base(), 5), segattn.Segmenter.from_tokenizer(make_tokenizer()))
    model.load_adapter(str(tmp_path / "all" / "second"), "again")
    model.set_adapter("again")
    torch.testing.assert_close(got(model, chat), wanted(chat, 1, "prefix"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_switches_adapters_on_its_own(several, chat, duplicate):
    twin = duplicate(several)
    twin.set_adapter("second")
    torch.testing.assert_close(got(twin, chat), wanted(chat, 1, "prefix"), atol=1e-5, rtol=0)
    torch.testing.assert_close(got(several, chat), wanted(chat, 0, "turns"), atol=1e-5, rtol=0)


def test_an_adapter_that_transformers_itself_loads(tmp_path, chat):
    """`model.load_adapter` of a bare model, without PEFT's wrapper."""
    save_adapter(tmp_path / "prefix", 1, "prefix")
    model = segattn.enable(base(), segattn.Segmenter.from_tokenizer(make_tokenizer()))
    model.load_adapter(str(tmp_path / "prefix"))
    torch.testing.assert_close(got(model, chat), wanted(chat, 1, "prefix"), atol=1e-5, rtol=0)
    model.disable_adapters()
    stock = base()
    with torch.no_grad():
        want = stock(chat[0], attention_mask=hand_mask(stock, chat[1]["turns"], "sdpa")).logits
    torch.testing.assert_close(got(model, chat), want, atol=1e-5, rtol=0)


def test_an_adapter_loaded_around_an_enabled_model_is_refused_until_it_is_enabled(tmp_path, chat):
    save_adapter(tmp_path / "prefix", 1, "prefix")
    inside = segattn.enable(base(), segattn.Segmenter.from_tokenizer(make_tokenizer()))
    wrapped = peft.PeftModel.from_pretrained(inside, str(tmp_path / "prefix")).eval()
    with pytest.raises(segattn.SegmentError, match="'default' was loaded around an enabled model"):
        got(wrapped, chat)
    segattn.enable(wrapped, segattn.Segmenter.from_tokenizer(make_tokenizer(), policy="prefix"))
    torch.testing.assert_close(got(wrapped, chat), wanted(chat, 1, "prefix"), atol=1e-5, rtol=0)


def test_a_merged_model_records_what_was_merged_into_it(several, tmp_path):
    several.set_adapter("second")
    merged = several.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    saved = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert saved["segment_attention"]["segmenter"]["policy"] == "prefix"
