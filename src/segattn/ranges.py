"""The rule as ranges: under segments each query sees one unbroken run of keys, so two numbers say which.

Whoever computes attention without a mask (slices, block masks) starts from here. The rule itself is not written down a
second time: the ends of each run are found by bisection of the mask function.

The five tokens of masks.py, `segment_ids = [0, 0, 0, -1, -1]`:

    query   0 1 2 3 4
    start   0 0 0 0 0     first key seen
    stop    3 3 3 4 5     first key not seen any more
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from segattn.masks import MaskFunction, checked_arguments, mask_function

__all__ = ["VisibleRanges", "bisected_ranges", "visible_ranges"]


@dataclass(frozen=True)
class VisibleRanges:
    """Which keys each query sees: `start <= key < stop`, counted over all keys, cached ones included.

    Attributes:
        start: int64 (B, Q).
        stop: int64 (B, Q); equal to `start` where a query sees nothing.
        keys: how many keys there are.
    """

    start: Tensor
    stop: Tensor
    keys: int

    def pairs(self) -> int:
        """Return how many query-key pairs are visible, summed over the batch."""
        return int((self.stop - self.start).sum())


def visible_ranges(
    segment_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    query_length: int | None = None,
    sliding_window: int | None = None,
) -> VisibleRanges | None:
    """Return the keys that each query sees; arguments and errors as in `segattn.segment_mask`.

    Returns:
        None where some query sees keys with a gap between them (padding in the middle of a row, a packed document in
        two places): only a mask can say that.
    """
    ids, documents, queries = checked_arguments(segment_ids, attention_mask, query_length, sliding_window)
    real = None if documents is None else documents != 0
    if documents is not None and _recurs(documents):
        return None
    # A padding query sees no padding, not even itself; bisection begins there, so padding keys go afterwards.
    rule = mask_function(ids, documents, sliding_window, hide_padding=False)
    batch, keys = ids.shape
    return bisected_ranges(rule, batch, queries=(keys - queries, keys), keys=(0, keys), real_BK=real, device=ids.device)


def bisected_ranges(
    rule: MaskFunction,
    batch: int,
    *,
    queries: tuple[int, int],
    keys: tuple[int, int],
    real_BK: Tensor | None,
    device: torch.device,
) -> VisibleRanges | None:
    """Find the run of keys around each query for which a mask function is True, then leave padding keys out.

    Args:
        rule: lets each query see itself, and without padding one unbroken run of keys.
        batch: number of rows B.
        queries: first position and end; each query is a key too.
        keys: first position and end; a sliding cache has let go of what lies before.
        real_BK: bool, False = padding key; None where there is no padding.
        device: of the mask function's tensors.

    Returns:
        ranges counted from the first key; None where padding lies between two keys that one query sees.
    """
    first_key, end = keys
    rows = torch.arange(batch, device=device)[:, None]
    query = torch.arange(*queries, device=device)[None].expand(batch, -1)
    head = torch.zeros_like(rows)
    # The farthest step that is still seen, backward and ahead: a binary search from the highest bit down.
    direction = torch.tensor([-1, 1], device=device)[:, None, None]
    step = torch.zeros((2, *query.shape), dtype=torch.int64, device=device)
    for bit in reversed(range(max(end - first_key - 1, 1).bit_length())):
        farther = step + (1 << bit)
        key = query + direction * farther
        inside = (key >= first_key) & (key < end)
        seen = inside & rule(rows, head, query, key.clamp(first_key, end - 1))
        step = torch.where(seen, farther, step)
    start, stop = query - step[0] - first_key, query + step[1] + 1 - first_key
    return _without_padding(start, stop, end - first_key, real_BK)


def _without_padding(start: Tensor, stop: Tensor, keys: int, real_BK: Tensor | None) -> VisibleRanges | None:
    if real_BK is None:
        return VisibleRanges(start, stop, keys)
    batch = real_BK.shape[0]
    before = torch.zeros(batch, keys + 1, dtype=torch.int64, device=real_BK.device)
    before[:, 1:] = real_BK.cumsum(1)
    count = before.gather(1, stop) - before.gather(1, start)
    position = torch.arange(keys, device=real_BK.device).expand(batch, -1)
    # The next real key at or after a position, and the first position after the last real key before one.
    next_real = torch.where(real_BK, position, keys).flip(1).cummin(1).values.flip(1)
    after_real = torch.where(real_BK, position + 1, 0).cummax(1).values
    trimmed = next_real.gather(1, start)
    stop = torch.where(count > 0, after_real.gather(1, stop - 1), trimmed)
    if bool((count != stop - trimmed).any()):
        return None
    return VisibleRanges(trimmed, stop, keys)


def _recurs(documents: Tensor) -> bool:
    """Whether a document of some row stands in two places."""
    previous = torch.nn.functional.pad(documents, (1, 0))[:, :-1]
    begins = torch.where(documents != previous, documents, 0)
    ordered = begins.sort(dim=1).values
    return bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != 0)).any())
