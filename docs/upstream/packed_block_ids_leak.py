"""Two packed documents that use the same block id see each other. Exit 1: defect present, 0: fixed."""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import create_causal_mask

torch.manual_seed(0)
ids = torch.randint(3, 64, (1, 8))
positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])  # two documents of 4 tokens
blocks = torch.tensor([[0, 0, -1, -1, 0, 0, -1, -1]])  # ids numbered per document, as a tokenizer would
config = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    attn_implementation="sdpa",
)
model = LlamaForCausalLM(config).eval()
mask = create_causal_mask(
    config=model.config,
    inputs_embeds=model.get_input_embeddings()(ids),
    attention_mask=None,
    past_key_values=None,
    position_ids=positions,
    block_sequence_ids=blocks,
)
leaks = mask[0, 0, :4, 4:].sum() + mask[0, 0, 4:, :4].sum()
changed = ids.clone()
changed[0, 4] = (ids[0, 4] + 1) % 64  # the first token of document 2
with torch.no_grad():
    first, second = (
        model(x, attention_mask=mask, position_ids=positions, use_cache=False).logits for x in (ids, changed)
    )
moved = (first - second)[0, :4].abs().max().item()
print("expected: 0 pairs across the document boundary; document 1 does not depend on document 2")
print(f"observed: {int(leaks)} pairs across the boundary; document 1 moves by {moved:.3g} when document 2 changes")
print("defect present" if leaks else "defect absent")
sys.exit(int(leaks > 0))
