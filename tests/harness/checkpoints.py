"""Checkpoints of every kind that the harness is given, made of the tiny model."""

import torch
from peft import LoraConfig, get_peft_model

import segattn
from cli.tiny_chat import make_model, make_tokenizer, save_checkpoint


def save_all(root):
    """Folder per kind: "given" records that its segment ids were always given, "base" and "plain adapter" nothing."""
    save_checkpoint(root / "base")
    tokenizer = make_tokenizer()
    for kind, policy in (("turns", "turns"), ("prefix", "prefix"), ("causal", "causal"), ("given", None)):
        segmenter = None if policy is None else segattn.Segmenter.from_tokenizer(tokenizer, policy=policy)
        segattn.save_pretrained(segattn.enable(make_model(), segmenter), root / kind)
        tokenizer.save_pretrained(root / kind)
    segattn.save_pretrained(
        segattn.enable(adapted(root), segattn.Segmenter.from_tokenizer(tokenizer)), root / "adapter"
    )
    adapted(root).save_pretrained(root / "plain adapter")
    return root


def adapted(root):
    model = make_model()
    model.config._name_or_path = model.name_or_path = str(root / "base")
    torch.manual_seed(3)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
