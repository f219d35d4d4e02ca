"""Gemma 3, packed documents: local layers read the block ids of the wrong tokens. Exit 1: defect present, 0: fixed."""

import sys

import torch
from transformers import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import create_masks_for_vision_model

config = Gemma3TextConfig(hidden_size=32, num_attention_heads=4, sliding_window=64)  # longer than the input
config._attn_implementation = "sdpa"
positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])  # two documents of 4 tokens
blocks = torch.tensor([[-1, -1, -1, -1, 0, 0, 0, -1]])  # an image in document 2: tokens 4 to 6
masks = create_masks_for_vision_model(
    config=config,
    inputs_embeds=torch.zeros(1, 8, 32),
    attention_mask=None,
    past_key_values=None,
    position_ids=positions,
    block_sequence_ids=blocks,
)
full, local = masks["full_attention"][0, 0], masks["sliding_attention"][0, 0]
defect = not torch.equal(full, local)
print("expected: a window longer than the input: both kinds of layer have the same mask, token 4 sees token 6 in both")
print(f"observed: token 4 sees token 6: full {bool(full[4, 6])}, sliding {bool(local[4, 6])}")
print("full:", *("".join(".#"[int(x)] for x in row) for row in full), sep="\n  ")
print("sliding:", *("".join(".#"[int(x)] for x in row) for row in local), sep="\n  ")
print("defect present" if defect else "defect absent")
sys.exit(int(defect))
