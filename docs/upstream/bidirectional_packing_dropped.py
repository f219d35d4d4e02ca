"""`config.is_causal = False` drops the packing: documents see each other. Exit 1: defect present, 0: fixed."""

import sys

import torch
from transformers import LlamaConfig
from transformers.masking_utils import create_causal_mask

config = LlamaConfig(hidden_size=32, num_attention_heads=4)
config._attn_implementation = "sdpa"
positions = torch.tensor([[0, 1, 2, 0, 1, 2]])  # two documents of 3 tokens
seen = {}
for causal in (True, False):
    config.is_causal = causal
    mask = create_causal_mask(
        config=config,
        inputs_embeds=torch.zeros(1, 6, 32),
        attention_mask=None,
        past_key_values=None,
        position_ids=positions,
    )
    seen[causal] = 18 if mask is None else int(mask[0, 0, :3, 3:].sum() + mask[0, 0, 3:, :3].sum())
    print(f"is_causal={causal}: mask", "None" if mask is None else "of shape " + str(tuple(mask.shape)))
print("expected: no pair across the document boundary, causal or not")
print(f"observed: pairs across the boundary: causal {seen[True]}, bidirectional {seen[False]} of 18 (None: all)")
print("defect present" if seen[False] else "defect absent")
sys.exit(int(seen[False] > 0))
