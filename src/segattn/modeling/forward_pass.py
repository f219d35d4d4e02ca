"""The forward pass that is under way: whose it is, and which segment ids it follows.

Why a holder: between a model's `forward` and the place where transformers builds the attention mask lie model-specific
calls that pass on no extra argument. The outermost module of ours that is called (the language model, or its backbone
where a trainer calls that directly) begins a pass; the mask function reads it. Each thread has its own.
"""

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segattn.errors import UnsupportedModelError

if TYPE_CHECKING:
    from segattn.modeling.state import SegmentState

__all__ = ["ForwardPass", "begin", "current", "end"]


class ForwardPass:
    """One pass of one enabled model.

    Attributes:
        state: of the model.
        owner: the object whose call began the pass, and ends it.
        depth: of the owner: 0 for a whole model, more for what it calls.
        outer: the pass of another model that this one runs inside of.
        segment_ids: int64 (batch, past + new tokens), None where the causal mask is exact.
        mask_was_built: whether a mask was made from the segment ids.
    """

    def __init__(self, state: "SegmentState", owner: object, depth: int, outer: "ForwardPass | None") -> None:
        self.state = state
        self.owner = owner
        self.depth = depth
        self.outer = outer
        self.segment_ids: Tensor | None = None
        self.mask_was_built = False


class _Plain:
    current: ForwardPass | None = None


class _PerThread(threading.local):
    current: ForwardPass | None = None


# torch.compile cannot trace thread-local objects; a compiled region begins and ends its pass in one go.
_traced, _running = _Plain(), _PerThread()


def _place() -> Any:
    return _traced if torch.compiler.is_compiling() else _running


def current() -> ForwardPass | None:
    """Return the innermost pass under way in this thread, None outside of any."""
    place = _place()
    found: ForwardPass | None = place.current
    # Where a compiled model falls back to plain Python midway, the pass was begun by the compiled part.
    return _traced.current if found is None and place is _running else found


def begin(state: "SegmentState", owner: object, depth: int = 0) -> ForwardPass | None:
    """Begin a pass, unless `owner` was called from within a pass of the same model: then return None.

    Args:
        state: of the model.
        owner: who will `end` the pass.
        depth: of the owner. A pass of the same or a greater depth that seems to run around it is what an interrupt left
            behind, and is dropped.
    """
    around = current()
    if around is not None and around.state is state:
        if around.depth < depth:
            return None
        around = around.outer
    begun = ForwardPass(state, owner, depth, around)
    _place().current = begun
    return begun


def end(owner: object, *, succeeded: bool) -> None:
    """End the pass that `owner` began, if it did.

    Raises:
        UnsupportedModelError: the model finished a pass with segments without asking for a mask.
    """
    ending = current()
    if ending is None or ending.owner is not owner:
        return
    _place().current = ending.outer
    if succeeded and ending.segment_ids is not None and not ending.mask_was_built:
        raise UnsupportedModelError(
            "the model built no attention mask from the segment ids: it would have run causally. "
            "This model class or option cannot honour segments"
        )
