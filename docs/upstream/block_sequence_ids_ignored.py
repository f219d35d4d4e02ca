"""Text models accept `block_sequence_ids=` in forward and ignore it. Exit 1: defect present, 0: fixed."""

import sys

import torch
import transformers
from transformers.masking_utils import create_causal_mask

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
ids = torch.randint(3, 64, (1, 6))
blocks = torch.tensor([[0, 0, 0, 0, -1, -1]])  # tokens 0 to 3 are one block and see each other
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "sdpa"}
defect = False
print("expected: logits equal to those under the mask that create_causal_mask makes from the same ids, or an error")
for family in ("Llama", "Mistral", "Qwen2", "GPTNeoX"):
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**sizes)).eval()
    plain = {"config": model.config, "inputs_embeds": torch.zeros(1, 6, 32), "attention_mask": None}
    mask = create_causal_mask(**plain, past_key_values=None, block_sequence_ids=blocks)
    with torch.no_grad():
        causal, wanted = model(ids).logits, model(ids, attention_mask=mask).logits
        try:
            got = model(ids, block_sequence_ids=blocks).logits
        except (TypeError, ValueError) as error:
            print(f"observed: {family}: forward refuses it: {error}")
            continue
    off = (got - wanted).abs().max().item()
    print(
        f"observed: {family}: bitwise the causal logits: {torch.equal(got, causal)}; off the wanted ones by {off:.2g}"
    )
    defect |= off > 1e-5
try:
    model.generate(ids, block_sequence_ids=blocks, max_new_tokens=1, do_sample=False)
    print("observed: generate accepts it")
except (TypeError, ValueError) as error:
    print(f"observed: generate refuses it: {error}")
print("defect present" if defect else "defect absent")
sys.exit(int(defect))
