"""Which attention backends of vLLM can compute segments, and how they are told.

From the source of vLLM 0.32 and 0.33. `CPU_ATTN` was run; the others were read.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from segattn.serving.errors import ServingError

__all__ = ["BACKENDS", "DEFAULT_ON_GPU", "Mode", "mode_of"]

DEFAULT_ON_GPU = "TRITON_ATTN"
"""Takes a flag per request on every GPU that Triton supports."""


@dataclass(frozen=True)
class Mode:
    """How a step's kernels learn which chunks are segments.

    `per_request`: an int32 flag for each request. Otherwise one bool holds for the whole step, and the scheduler makes
    steps of one kind (homogeneous steps).
    """

    per_request: bool
    why: str


_PER_REQUEST = Mode(True, "takes a causal flag per request")
_PER_STEP = Mode(False, "takes one causal flag per step")

BACKENDS: Mapping[str, Mode] = {
    "CPU_ATTN": _PER_REQUEST,
    "TRITON_ATTN": _PER_REQUEST,
    "FLASH_ATTN": _PER_STEP,
    "FLASHINFER": _PER_STEP,
    "FLEX_ATTENTION": _PER_STEP,
}


def mode_of(backend: str, *, flash_attn_version: int | None = None, capability: tuple[int, int] | None = None) -> Mode:
    """Return how a backend is told which chunks are segments.

    Args:
        backend: its name in vLLM's registry.
        flash_attn_version: of `FLASH_ATTN`; None for vLLM's choice.
        capability: the GPU's compute capability; None on the CPU.

    Raises:
        ServingError: a backend that cannot compute segments, or was not looked at.
    """
    mode = BACKENDS.get(backend)
    if mode is None:
        raise ServingError(
            f"the attention backend {backend} is not known to compute segments; expected one of {', '.join(BACKENDS)}. "
            f"Start with --attention-backend {DEFAULT_ON_GPU}"
        )
    if backend == "FLASH_ATTN" and flash_attn_version == 4 and capability is not None and capability[0] == 9:
        return _PER_REQUEST  # the kernels of other GPUs refuse the flag
    return mode
