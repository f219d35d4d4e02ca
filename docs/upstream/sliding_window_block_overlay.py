"""On a sliding-window layer, `block_sequence_ids` overrides the window. Exit 1: as described, 0: changed.

A question of intended semantics. `create_sliding_window_causal_mask` makes `(causal and window) or block`; Gemma 3 and
Gemma 4 make their own mask for the same layer, `window and (causal or block)` (gemma3: create_masks_for_vision_model).
"""

import sys

import torch
from transformers import Gemma3TextConfig
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.models.gemma3.modeling_gemma3 import create_masks_for_vision_model

length, window = 8, 3
blocks = torch.tensor([[0, 0, 0, 0, 0, 0, -1, -1]])  # one block of 6 tokens, twice the window
config = Gemma3TextConfig(hidden_size=32, num_attention_heads=4, sliding_window=window)
config._attn_implementation = "sdpa"
arguments = {
    "config": config,
    "inputs_embeds": torch.zeros(1, length, 32),
    "attention_mask": None,
    "past_key_values": None,
    "position_ids": torch.arange(length)[None],
    "block_sequence_ids": blocks,
}
generic = create_sliding_window_causal_mask(**arguments)[0, 0]
by_hand = create_masks_for_vision_model(**arguments)["sliding_attention"][0, 0]
q, kv = torch.arange(length)[:, None], torch.arange(length)[None, :]
beyond = generic & (q - kv >= window)
print(f"expected: window {window}: no query sees a key {window} or more positions back, also inside a block")
print(f"observed: create_sliding_window_causal_mask lets {int(beyond.sum())} pairs see further back than the window")
print("create_sliding_window_causal_mask:", *("".join(".#"[int(x)] for x in row) for row in generic), sep="\n  ")
print("gemma3 create_masks_for_vision_model:", *("".join(".#"[int(x)] for x in row) for row in by_hand), sep="\n  ")
print("defect present" if beyond.any() else "defect absent")
sys.exit(int(beyond.any()))
