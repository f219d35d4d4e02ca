"""A tiny random chat model on disk, as a checkpoint that was tuned with segments, and prompts for it by hand."""

import json
import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cli.tiny_chat import END, START, make_tokenizer

VOCABULARY = 258
START_ID, END_ID = 256, 257
# Byte-level tokens are numbered by the sorted alphabet of the byte-level pre-tokenizer.
ROLES = ("system", "user")


def save_model(folder, seed=0, entry=True):
    """Write model, tokenizer and the entry of its segmentation; returns the model."""
    from segattn import Segmenter

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=END_ID,
        initializer_range=0.35,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    if entry:
        file = folder / "config.json"
        content = json.loads(file.read_text())
        segmenter = Segmenter.from_tokenizer(tokenizer).to_dict()
        content["segment_attention"] = {"format": 1, "segmenter": segmenter}
        file.write_text(json.dumps(content))
    return model


def save_adapter(folder, base, seed=3, tuned=True):
    """Write a random LoRA adapter over the model in a folder; returns the adapted model."""
    from peft import LoraConfig, get_peft_model

    from segattn import Segmenter

    torch.manual_seed(seed)
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base),
        LoraConfig(r=6, lora_alpha=12, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]),
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    model.save_pretrained(folder)
    if tuned:
        entry = {"format": 1, "segmenter": Segmenter.from_tokenizer(make_tokenizer()).to_dict()}
        (folder / "segment_attention.json").write_text(json.dumps(entry))
    return model


class Chats:
    """Makes prompts and, from their construction, their segments."""

    def __init__(self, seed=0):
        self.random = random.Random(seed)
        self.tokenizer = make_tokenizer()

    def text(self, length):
        """Ids of plain letters."""
        letters = "".join(self.random.choice("abcdefgh ") for _ in range(length))
        return self.tokenizer(letters).input_ids

    def message(self, role, content):
        header = self.tokenizer(f"{role}\n").input_ids
        line = self.tokenizer("\n").input_ids
        return [START_ID, *header, *content, END_ID, *line]

    def prompt(self, turns):
        """Ids and spans of a conversation [(role, content ids), ...] that awaits an answer."""
        ids, spans = [], []
        for role, content in turns:
            new = self.message(role, content)
            if role != "assistant":
                spans.append((len(ids), len(ids) + len(new)))
            ids += new
        return [*ids, START_ID, *self.tokenizer("assistant\n").input_ids], spans


__all__ = ["END", "END_ID", "START", "START_ID", "VOCABULARY", "Chats", "save_adapter", "save_model"]
