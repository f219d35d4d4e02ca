"""Whether a contestant computes what it says it does: a fast but wrong one must not win."""

import math

import torch
from torch import Tensor

from segattn.bench.errors import BenchError

__all__ = ["check_error", "largest_error"]

# Largest error, as a share of the largest number of the reference.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def largest_error(found: Tensor, reference: Tensor) -> float:
    """Return the largest difference, as a share of the reference's largest number; infinite where one is no number."""
    if found.shape != reference.shape:
        raise BenchError(f"the result has shape {tuple(found.shape)} and its reference {tuple(reference.shape)}")
    reference = reference.detach().double()
    difference = (found.detach().double() - reference).abs().max()
    error = float(difference / reference.abs().max().clamp(min=1e-30))
    return float("inf") if math.isnan(error) else error


def check_error(name: str, error: float, dtype: torch.dtype) -> None:
    """Refuse a contestant whose error is larger than the dtype explains.

    Raises:
        BenchError: names the contestant, its error and what was allowed.
    """
    allowed = _TOLERANCE.get(dtype, 1e-4)
    if not error <= allowed:
        raise BenchError(
            f"{name} differs from the reference by {error:.2g} of its largest number; expected at most {allowed:.0e} "
            f"in {str(dtype).removeprefix('torch.')}. It is not timed; this is a defect of that contestant"
        )
