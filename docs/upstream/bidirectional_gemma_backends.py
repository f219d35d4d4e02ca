"""Gemma 1 and 2, `use_bidirectional_attention=True`: whether it acts depends on the backend and on the padding.

PaliGemma sets this flag on its text model, so its forward without `token_type_ids` is affected too.
Exit 1: defect present, 0: fixed.
"""

import sys

import torch
import transformers
from transformers import Gemma2Config, GemmaConfig, PaliGemmaConfig

transformers.logging.set_verbosity_error()
text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
vision = {"model_type": "siglip_vision_model", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
pali = PaliGemmaConfig(text_config=GemmaConfig(**text), vision_config=vision, projection_dim=32, image_token_id=63)
cases = [
    ("GemmaForCausalLM", GemmaConfig(**text, use_bidirectional_attention=True), ("sdpa", "eager")),
    ("Gemma2ForCausalLM", Gemma2Config(**text, use_bidirectional_attention=True), ("eager",)),  # has no sdpa
    ("PaliGemmaForConditionalGeneration", pali, ("sdpa", "eager")),
]
torch.manual_seed(0)
ids = torch.randint(3, 60, (2, 6))
changed = ids.clone()
changed[0, 5] = (ids[0, 5] + 1) % 60  # the last token of row 0
padding = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])  # row 0 is whole, row 1 is padded
defect = False
print("expected: in row 0, token 0 sees token 5 in every case (PaliGemma: at least the same answer in every case)")
for name, config, backends in cases:
    model, seen = getattr(transformers, name)(config).eval(), {}
    for backend in backends:
        model.set_attn_implementation(backend)
        for padded, mask in (("no padding", None), ("row 1 padded", padding)):
            with torch.no_grad():
                first, second = (model(x, attention_mask=mask).logits[0, 0] for x in (ids, changed))
            seen[f"{backend}, {padded}"] = (first - second).abs().max().item() > 1e-6
    print(f"observed: {name}: token 0 sees token 5: {seen}")
    defect |= len(set(seen.values())) > 1 if config is pali else not all(seen.values())
print("defect present" if defect else "defect absent")
sys.exit(int(defect))
