"""The forward pass that is under way: whose it is, and which segment ids it follows.

Why a holder: between a model's `forward` and the place where transformers builds the attention mask lie model-specific
calls that pass on no extra argument. The outermost module of ours that is called (the language model, or its backbone
where a trainer calls that directly) begins a pass; the mask function reads it. Each thread has its own.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from segattn.errors import UnsupportedModelError

if TYPE_CHECKING:
    from segattn.modeling.state import SegmentState

__all__ = ["ForwardPass", "begin", "causal_block", "current", "end", "is_causal"]


class ForwardPass:
    """One pass of one enabled model.

    Attributes:
        state: of the model.
        owner: the object whose call began the pass, and ends it.
        depth: of the owner: 0 for a whole model, more for what it calls.
        outer: the pass of another model that this one runs inside of.
        segment_ids: int64 (batch, past + new tokens), None where the causal mask is exact.
        layers: those that follow segments; None for all.
        borders: bool (batch or 1, length), where packed documents begin; None where there can be none.
        mask_was_built: whether a mask, or slices in its place, was made from the segment ids.
        token_was_read: False once slices, or masks by layer, were made; True again when a layer has read them.
        is_ahead: whether masks are asked for ahead of the forward, by generation with a static cache.
        wants_weights: whether the caller asked for attention weights, which slices do not have.
    """

    def __init__(self, state: "SegmentState", owner: object, depth: int, outer: "ForwardPass | None") -> None:
        self.state = state
        self.owner = owner
        self.depth = depth
        self.outer = outer
        self.segment_ids: Tensor | None = None
        self.layers: tuple[int, ...] | None = None
        self.borders: Tensor | None = None
        self.mask_was_built = False
        self.token_was_read = True
        self.is_ahead = False
        self.wants_weights = False


class _Slot:
    """Where the code that runs now finds its pass, and the models that run causally on purpose."""

    def __init__(self) -> None:
        self.current: ForwardPass | None = None
        self.causal: tuple[SegmentState, ...] = ()


# An object inside of the thread-local one: torch.compile loses what it writes to a thread-local object itself.
class _Threads(threading.local):
    def __init__(self) -> None:
        self.slot = _Slot()


_threads = _Threads()


def current() -> ForwardPass | None:
    """Return the innermost pass under way in this thread, None outside of any."""
    return _threads.slot.current


def is_causal(state: "SegmentState") -> bool:
    """Whether this thread is inside of a `causal_block` of the model."""
    return any(causal is state for causal in _threads.slot.causal)


@contextmanager
def causal_block(state: "SegmentState") -> Iterator[None]:
    """Let this thread run the model causally inside the block."""
    slot = _threads.slot
    slot.causal = (state, *slot.causal)
    try:
        yield
    finally:
        ending = next(place for place, causal in enumerate(slot.causal) if causal is state)
        slot.causal = slot.causal[:ending] + slot.causal[ending + 1 :]


def begin(state: "SegmentState", owner: object, depth: int = 0, *, told: bool = False) -> ForwardPass | None:
    """Begin a pass, unless `owner` was called from within a pass of the same model: then return None.

    Args:
        state: of the model.
        owner: who will `end` the pass.
        depth: of the owner. A pass of the same or a greater depth that seems to run around it is what an interrupt left
            behind, and is dropped.
        told: whether the owner was given segment ids, which no module inside of a pass is: that pass is dropped too.
    """
    around = current()
    if around is not None and around.state is state:
        if around.depth < depth and not told:
            return None
        around = around.outer
    begun = ForwardPass(state, owner, depth, around)
    _threads.slot.current = begun
    return begun


def end(owner: object, *, succeeded: bool) -> None:
    """End the pass that `owner` began, if it did.

    Raises:
        UnsupportedModelError: the model finished a pass with segments without asking for a mask.
    """
    ending = current()
    if ending is None or ending.owner is not owner:
        return
    _threads.slot.current = ending.outer
    if succeeded and ending.segment_ids is not None and not ending.mask_was_built:
        raise UnsupportedModelError(
            "the model built no attention mask from the segment ids: it would have run causally. "
            "This model class or option cannot honour segments"
        )
    if succeeded and not ending.token_was_read:
        raise UnsupportedModelError(
            "the model's layers did not compute the slices that stood for their mask: its attention does not come from "
            "the attention function in its config. Run it with a dense mask: segattn.disable(model), then "
            "segattn.enable(model, segmenter, backend='dense')"
        )
