"""Where a model's attention goes: the share that goes ahead, and the map of one prompt.

The paper shows block-shaped maps of tuned models (arXiv 2412.18487); the share ahead says the same in one number for
each head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segattn.data import Encoder, Sample
from segattn.errors import UnsupportedModelError
from segattn.evaluation.likelihood import Attention, running
from segattn.modeling import segmenter_of

__all__ = ["attention_map", "share_ahead"]


@torch.no_grad()
def share_ahead(model: Any, items: Sequence[Sample]) -> list[list[float]]:
    """Return the share of attention that goes to keys ahead of the query: layers x heads.

    The mean over those queries of the prompts that have a key ahead, i.e. all of a segment but its last one.

    Args:
        model: enabled, with a segmenter, loaded with attn_implementation="eager", which returns weights.
        items: their prompts are looked at, one by one.

    Raises:
        UnsupportedModelError: the model returns no weights.
    """
    total: Tensor | float = 0.0
    queries = 0
    for item in items:
        weights_LHQK, segments = _weights(model, item, "segments")
        same = (segments[:, None] == segments) & (segments[:, None] >= 0)
        ahead = same & torch.ones_like(same).triu(1)
        with_key_ahead = ahead.any(-1)
        total = total + (weights_LHQK * ahead).sum(-1)[..., with_key_ahead].sum(-1)
        queries += int(with_key_ahead.sum())
    if not isinstance(total, Tensor) or not queries:
        raise UnsupportedModelError("no prompt has a key ahead; expected prompts with segments of two tokens or more")
    return [[round(value, 5) for value in row] for row in (total / queries).tolist()]


@torch.no_grad()
def attention_map(model: Any, item: Sample, attention: Attention) -> list[list[float]]:
    """Return the attention of one prompt, mean over layers and heads: a row for each query, a number for each key.

    Args:
        model: see `share_ahead`.
        item: its prompt is looked at.
        attention: the mask to run under.

    Raises:
        UnsupportedModelError: the model returns no weights.
    """
    weights_LHQK, _ = _weights(model, item, attention)
    return [[round(value, 4) for value in row] for row in weights_LHQK.mean((0, 1)).tolist()]


def _weights(model: Any, item: Sample, attention: Attention) -> tuple[Tensor, Tensor]:
    """Attention weights (layers, heads, queries, keys) and the segment ids (queries) of a prompt."""
    segmenter = segmenter_of(model)
    if segmenter is None:
        raise UnsupportedModelError("the model was enabled without a segmenter; segattn.enable(model, segmenter) first")
    prompt = Encoder(segmenter).prompt(item, [])
    ids = torch.tensor([prompt.input_ids], device=model.device)
    segments = torch.tensor([prompt.segment_ids], device=model.device)
    with running(model, attention):
        output = model(input_ids=ids, segment_ids=segments, output_attentions=True)
    if not output.attentions or output.attentions[0] is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} returns no attention weights; load it with attn_implementation='eager'"
        )
    return torch.stack([layer[0].float() for layer in output.attentions]), segments[0]
