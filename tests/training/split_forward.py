"""A forward pass of a model that is split by tensors, for a launcher to start: `split_forward.py CHECKPOINT FOLDER`.

Each process writes the largest difference to the whole model's logits, for each backend, to FOLDER/split-N.json.
"""

import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import segattn

IDS = torch.arange(40).remainder(23).view(2, 20) + 5
SEGMENTS = torch.tensor([[0] * 9 + [1] * 5 + [-1] * 6, [-1] + [0] * 12 + [-1] * 7])


def main():
    """Compare the split model with the whole one, under segments and causally."""
    checkpoint, folder = sys.argv[1:]
    rank = os.environ["RANK"]
    torch.distributed.init_process_group("gloo")
    split = AutoModelForCausalLM.from_pretrained(checkpoint, tp_plan="auto", dtype="float32")
    seen = {"tp_size": split.tp_size, "heads_here": split.model.layers[0].self_attn.q_proj.weight.to_local().shape[0]}
    with torch.no_grad():
        for backend in ("dense", "sliced"):
            whole = segattn.enable(AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32"), backend=backend)
            segattn.enable(split, backend=backend)
            want, got = (model(input_ids=IDS, segment_ids=SEGMENTS).logits for model in (whole, split))
            seen[backend] = float((got - want).abs().max())
            with segattn.causal(whole):
                seen["causal differs by"] = float((whole(input_ids=IDS).logits - want).abs().max())
            segattn.disable(split)
    (Path(folder) / f"split-{rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
