"""Packed documents are kept apart only without a mask and without a cache. Exit 1: as described, 0: changed.

An all-ones `attention_mask`, or `use_cache` left at its default, turns the detection off without a word.
"""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
ids = torch.randint(3, 64, (1, 8))
positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])  # two documents of 4 tokens
changed = ids.clone()
changed[0, 1] = (ids[0, 1] + 1) % 64  # a token of document 1
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
config._attn_implementation = "sdpa"
model = LlamaForCausalLM(config).eval()
defect = False
print("expected: document 2 does not depend on document 1 (0 in each line), or an error")
for name, extra in {
    "no mask, use_cache=False": {"use_cache": False},
    "all-ones mask, use_cache=False": {"use_cache": False, "attention_mask": torch.ones_like(ids)},
    "no mask, use_cache left at its default": {},
}.items():
    try:
        with torch.no_grad():
            first, second = (model(x, position_ids=positions, **extra).logits for x in (ids, changed))
    except ValueError as error:
        print(f"observed: {name}: refused, {error}")
        continue
    moved = (first - second)[0, 4:].abs().max().item()
    print(f"observed: {name}: document 2 moves by {moved:.3g} when document 1 changes")
    defect |= moved > 0
print("defect present" if defect else "defect absent")
sys.exit(int(defect))
