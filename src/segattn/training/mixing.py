"""Mixed training: each sample is read causally or with segments, at random, so that one checkpoint serves both."""

import torch
from torch import Tensor

from segattn.errors import UnsupportedModelError
from segattn.segments import CAUSAL

__all__ = ["check_share", "mix"]


def check_share(share: float) -> None:
    """Raise where a share of causal samples is none.

    Raises:
        UnsupportedModelError: it is below 0, or 1 and more (which is causal training).
    """
    if not 0 <= share < 1:
        raise UnsupportedModelError(
            f"causal_share is {share}; expected 0 (every sample with segments) or more, and less than 1: with "
            "--attention causal every sample is read causally"
        )


def mix(segment_ids: Tensor, position_ids: Tensor | None, share: float, generator: torch.Generator) -> Tensor:
    """Take the segments of some samples away.

    Args:
        segment_ids: int64 (B, L).
        position_ids: int64 (B, L), beginning at 0 with each sample where rows hold several; None for one in each row.
        share: the probability with which a sample is read causally.
        generator: on the CPU; the same numbers are drawn whatever the device.

    Returns:
        int64 (B, L): -1 throughout the chosen samples, otherwise as given.
    """
    draws = torch.rand(segment_ids.shape, generator=generator).to(segment_ids.device)
    # A sample's draw is that of its number in the row: no look at values, for which a GPU would have to wait.
    sample = (
        torch.zeros_like(segment_ids) if position_ids is None else ((position_ids == 0).cumsum(-1) - 1).clamp(min=0)
    )
    return segment_ids.masked_fill(draws.gather(-1, sample) < share, CAUSAL)
