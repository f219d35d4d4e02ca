"""Checkpoints of every kind that the commands take, made of the tiny model."""

import pytest
from peft import LoraConfig, get_peft_model

import segattn
from cli.tiny_chat import make_model, make_tokenizer, save_checkpoint


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Folder per kind: "merged" and "adapter" record a segmentation, "causal" records that there is none."""
    root = tmp_path_factory.mktemp("checkpoints")
    base = save_checkpoint(root / "base")
    tokenizer = make_tokenizer()
    for kind, policy in (("merged", "turns"), ("causal", "causal")):
        segmenter = segattn.Segmenter.from_tokenizer(tokenizer, policy=policy)
        segattn.save_pretrained(segattn.enable(make_model(), segmenter), root / kind)
        tokenizer.save_pretrained(root / kind)
    for kind in ("adapter", "plain adapter"):
        model = make_model()
        model.config._name_or_path = model.name_or_path = str(base)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        if kind == "adapter":
            segmenter = segattn.Segmenter.from_tokenizer(tokenizer)
            segattn.save_pretrained(segattn.enable(adapted, segmenter), root / kind)
        else:
            adapted.save_pretrained(root / kind)
    return root
