"""Save, load, and refuse what was tuned the other way."""

import json

import peft
import pytest
import torch
import transformers

import segattn
from modeling.tiny import build, tokens
from segattn.modeling.segmentation_entry import SEGMENTATION_FILE, read_segmentation

CHAT = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "Where is the key?"},
]
IDS = tokens(1)
ROW = torch.tensor([[-1] + [4] * 6 + [0] * 5 + [-1] * 2])


@pytest.fixture
def tokenizer(smollm2_tokenizer):
    return smollm2_tokenizer


@pytest.fixture
def segmenter(tokenizer):
    return segattn.Segmenter.from_tokenizer(tokenizer)


def tiny(tokenizer):
    return build(vocab_size=len(tokenizer), max_position_embeddings=256)


def adapter(model):
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    return peft.get_peft_model(model, config).eval()


def save_base(tokenizer, path):
    tiny(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return transformers.AutoModelForCausalLM.from_pretrained(path)


@pytest.mark.parametrize("by_the_model", [False, True])
def test_a_full_model_comes_back_with_its_segmentation(tmp_path, tokenizer, segmenter, by_the_model):
    model = segattn.enable(tiny(tokenizer), segmenter)
    batch = segmenter.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        want = model(**batch).logits
    if by_the_model:
        model.save_pretrained(tmp_path / "saved")
    else:
        segattn.save_pretrained(model, tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["architectures"] == ["LlamaForCausalLM"]
    assert saved["segment_attention"]["segmenter"]["policy"] == "turns"
    assert "segattn" not in json.dumps({k: v for k, v in saved.items() if k != "segment_attention"})

    loaded, its_tokenizer = segattn.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert segattn.is_enabled(loaded)
    assert its_tokenizer.chat_template == tokenizer.chat_template
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, want)
        # The recorded segmenter derives the same ids from the tokens alone.
        derived = loaded(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert torch.equal(derived, want)


@pytest.mark.parametrize("by_the_model", [False, True])
def test_an_adapter_comes_back_with_its_segmentation(tmp_path, tokenizer, segmenter, by_the_model):
    model = segattn.enable(adapter(save_base(tokenizer, tmp_path / "base")), segmenter)
    batch = segmenter.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        want = model(**batch).logits
    if by_the_model:
        model.save_pretrained(str(tmp_path / "adapter"))
    else:
        segattn.save_pretrained(model, tmp_path / "adapter")
    assert (tmp_path / "adapter" / SEGMENTATION_FILE).is_file()
    loaded, _ = segattn.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    assert isinstance(loaded, peft.PeftModel)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, want)


def test_stock_transformers_still_loads_what_was_saved(tmp_path):
    model = segattn.enable(build())
    segattn.save_pretrained(model, tmp_path / "saved")
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert not segattn.is_enabled(stock)
    with torch.no_grad():
        assert torch.equal(stock(IDS).logits, build()(IDS).logits)


def test_a_policy_travels(tmp_path, tokenizer):
    segmenter = segattn.Segmenter.from_tokenizer(tokenizer, policy="causal")
    segattn.save_pretrained(segattn.enable(tiny(tokenizer), segmenter), tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded, _ = segattn.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    ids = torch.tensor([tokenizer.apply_chat_template(CHAT, return_dict=False)])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, tiny(tokenizer)(ids).logits)


def test_a_checkpoint_without_segmentation_is_refused(tmp_path):
    build().save_pretrained(tmp_path / "causal")
    with pytest.raises(segattn.SegmentError, match="records no segmentation"):
        segattn.from_pretrained(tmp_path / "causal")


def test_a_stock_model_is_not_saved_as_one_with_segments(tmp_path):
    with pytest.raises(segattn.UnsupportedModelError, match="not enabled"):
        segattn.save_pretrained(build(), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a JSON object"),
        ("[]", "cannot read"),
        ('{"format": 2, "segmenter": null}', "A newer segattn"),
        ('{"format": 1}', "cannot read"),
    ],
)
def test_a_damaged_entry_is_named(tmp_path, content, message):
    (tmp_path / SEGMENTATION_FILE).write_text(content)
    with pytest.raises(segattn.SegmentError, match=message):
        read_segmentation(tmp_path)


def test_saving_over_a_checkpoint_replaces_it_and_leaves_nothing_behind(tmp_path):
    segattn.save_pretrained(segattn.enable(build(seed=0)), tmp_path / "saved")
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    segattn.save_pretrained(segattn.enable(build(seed=1)), tmp_path / "saved")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, build(seed=1)(IDS).logits)
    assert (tmp_path / "saved" / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_failed_save_keeps_the_checkpoint_that_was_there(tmp_path, monkeypatch):
    segattn.save_pretrained(segattn.enable(build(seed=0)), tmp_path / "saved")
    model = segattn.enable(build(seed=1))

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(model), "save_pretrained", full_disk, raising=False)
    with pytest.raises(OSError, match="No space left"):
        segattn.save_pretrained(model, tmp_path / "saved")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, build(seed=0)(IDS).logits)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
