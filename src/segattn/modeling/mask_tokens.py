"""What stands for an attention mask on its way through a model's layers: a token for a plan.

A model builds its masks once and hands them down to every layer. Where the layers run our attention function, the mask
function returns no mask but a token: a tensor of the mask's shape with a single number in memory, which every layer
passes on as it would a mask. The number names the content, so the token survives detaching, slicing, copying and a
second forward (gradient checkpointing). Stock attention cannot take it for a mask: torch's SDPA refuses integers.
"""

import itertools
import weakref
from typing import Any, Protocol

import torch
from torch import Tensor

from segattn.errors import UnsupportedModelError

__all__ = ["MaskContent", "content_of", "token_of"]

_CONTENT = "_segattn_plan"


class MaskContent(Protocol):
    """What a token stands for."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(batch, queries, keys)."""


_serial = itertools.count(1)
_contents: "weakref.WeakValueDictionary[int, MaskContent]" = weakref.WeakValueDictionary()


def token_of(content: MaskContent) -> Tensor:
    """Return the tensor that stands for `content` in the place of a mask: int64 (B, 1, Q, K), one number in memory."""
    batch, queries, keys = content.shape
    number = next(_serial)
    token = torch.tensor(number).expand(batch, 1, queries, keys)
    _contents[number] = content
    setattr(token, _CONTENT, content)  # the content lives as long as its token
    return token


def content_of(attention_mask: Any) -> MaskContent | None:
    """Return what a token stands for; None for a real mask, or none.

    Raises:
        UnsupportedModelError: the content is gone, or the model has cut the mask to another shape.
    """
    if not isinstance(attention_mask, Tensor) or attention_mask.dtype != torch.int64 or attention_mask.ndim != 4:
        return None
    content: MaskContent | None = getattr(attention_mask, _CONTENT, None)
    if content is None:
        content = _contents.get(int(attention_mask[0, 0, 0, 0]))
    batch, _, queries, keys = attention_mask.shape
    if content is None or content.shape != (batch, queries, keys):
        raise UnsupportedModelError(
            f"an attention layer got a mask of shape {tuple(attention_mask.shape)} whose slices are "
            f"{'gone' if content is None else f'for {content.shape}'}; run this model with a dense mask: "
            "segattn.disable(model), then segattn.enable(model, segmenter, backend='dense')"
        )
    return content
