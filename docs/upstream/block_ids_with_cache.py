"""With a cache, `block_sequence_ids` of the documented shape lands on the cached tokens. Exit 1: present, 0: fixed."""

import sys

import torch
from transformers import DynamicCache, LlamaConfig
from transformers.masking_utils import create_causal_mask

config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1)
config._attn_implementation = "sdpa"
cache = DynamicCache()
cache.update(torch.zeros(1, 4, 5, 8), torch.zeros(1, 4, 5, 8), 0)  # 5 tokens are cached, 3 are new
plain = {
    "config": config,
    "inputs_embeds": torch.zeros(1, 3, 32),
    "attention_mask": None,
    "past_key_values": cache,
}
of_new_tokens = torch.zeros(1, 3, dtype=torch.long)  # "A tensor of same shape as input IDs": the new tokens, one block
of_all_tokens = torch.tensor([[-1, -1, -1, -1, -1, 0, 0, 0]])
wanted = create_causal_mask(**plain, block_sequence_ids=of_all_tokens)
documented = "same shape as input IDs" in create_causal_mask.__doc__
print(
    "expected: ids shaped like input_ids make the 3 new tokens one block, or an error or the docstring asks for all 8"
)
try:
    got = create_causal_mask(**plain, block_sequence_ids=of_new_tokens)
except ValueError as error:
    print(f"observed: refused, {error}")
    defect = False
else:
    rows = ["".join(".#"[int(x)] for x in row) for row in got[0, 0]]
    print(f"observed: no error; first new token sees the last: {bool(got[0, 0, 0, 7])}", *rows, sep="\n  ")
    print("ids of all 8 tokens give", *("".join(".#"[int(x)] for x in row) for row in wanted[0, 0]), sep="\n  ")
    defect = documented and not torch.equal(got, wanted)
print("defect present" if defect else "defect absent")
sys.exit(int(defect))
