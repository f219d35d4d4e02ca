"""Opening segments gradually: how much the keys ahead count at each step of training."""

__all__ = ["OPENING_START", "opening_bias"]

OPENING_START = -8.0
"""The bias of the first step: a key ahead weighs e^-8, about 0.0003 of what its score says."""


def opening_bias(step: int, opening_steps: int) -> float | None:
    """Return the bias on the scores that segments allow and causal attention forbids.

    Args:
        step: the number of finished optimizer steps.
        opening_steps: over how many steps the bias rises linearly from -8 to 0.

    Returns:
        -8 at step 0, rising linearly; None, the plain rule, from `opening_steps` on.
    """
    if step >= opening_steps:
        return None
    return OPENING_START * (1 - step / opening_steps)
