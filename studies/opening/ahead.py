"""How much attention goes ahead: to keys of the own segment that come after the query."""

from collections.abc import Sequence
from typing import Any

import torch

from segattn.data import Encoder, Sample
from segattn.modeling import segmenter_of

__all__ = ["ahead_mass"]


@torch.no_grad()
def ahead_mass(model: Any, items: Sequence[Sample]) -> list[list[float]]:
    """Return the share of attention that goes ahead, a mean over queries that have a key ahead: layers x heads.

    Args:
        model: enabled, with attn_implementation="eager", which returns weights.
        items: prompts.
    """
    encoder = Encoder(segmenter_of(model))
    total: Any = 0.0
    queries = 0
    for item in items:
        prompt = encoder.prompt(item, [])
        ids = torch.tensor([prompt.segment_ids])
        output = model(input_ids=torch.tensor([prompt.input_ids]), segment_ids=ids, output_attentions=True)
        weights = torch.stack([layer[0] for layer in output.attentions])  # (layers, heads, queries, keys)
        same = (ids[0][:, None] == ids[0]) & (ids[0][:, None] >= 0)
        ahead = same & torch.ones_like(same).triu(1)
        with_key_ahead = ahead.any(-1)
        total = total + (weights * ahead).sum(-1)[..., with_key_ahead].sum(-1)
        queries += int(with_key_ahead.sum())
    return [[round(value, 5) for value in row] for row in (total / queries).tolist()]
