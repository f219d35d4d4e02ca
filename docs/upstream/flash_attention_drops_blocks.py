"""Under FlashAttention the mask function is dropped without a word. Exit 1: defect present, 0: fixed.

Needs neither a GPU nor the flash-attn package: only the mask is made.
"""

import sys

import torch
from transformers import LlamaConfig
from transformers.masking_utils import bidirectional_mask_function, create_causal_mask, sliding_window_overlay

blocks = torch.tensor([[0, 0, 0, 0, -1, -1]])  # tokens 0 to 3 are one block and see each other
padding = torch.tensor([[0, 1, 1, 1, 1, 1]])
config = LlamaConfig(hidden_size=32, num_attention_heads=4)
calls = {
    "block_sequence_ids": {"block_sequence_ids": blocks},
    "or_mask_function": {"or_mask_function": bidirectional_mask_function},
    "and_mask_function": {"and_mask_function": sliding_window_overlay(2)},
}
defect = False
print("expected: under flash_attention_2 an error, or a mask that differs from the one of a plain causal call")
for name, extra in calls.items():
    for padded, attention_mask in (("no padding", None), ("padding", padding)):
        masks = {}
        for backend in ("sdpa", "flash_attention_2"):
            config._attn_implementation = backend
            plain = {"config": config, "inputs_embeds": torch.zeros(1, 6, 32), "past_key_values": None}
            plain["attention_mask"] = attention_mask
            try:
                causal, masks[backend] = create_causal_mask(**plain), create_causal_mask(**plain, **extra)
            except (NotImplementedError, TypeError, ValueError) as error:
                print(f"observed: {name}, {padded}: {backend} refuses, {error}")
        if "flash_attention_2" in masks:
            got = masks["flash_attention_2"]
            same = got is causal or (None not in (got, causal) and got.ndim == 2 and torch.equal(got, causal))
            shape = None if got is None else tuple(got.shape)
            print(f"observed: {name}, {padded}: sdpa {tuple(masks['sdpa'].shape)}, flash_attention_2 {shape}")
            defect |= same
print("defect present" if defect else "defect absent")
sys.exit(int(defect))
