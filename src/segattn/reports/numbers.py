"""Numbers as a page writes them."""

from collections.abc import Mapping

__all__ = ["interval_text"]


def interval_text(interval: Mapping[str, float] | None, decimals: int = 3, sign: str = "") -> str:
    """Write a value with its interval: "0.875 (0.825 to 0.925)".

    Args:
        interval: "value", "low" and "high"; None for an empty cell.
        decimals: of each number.
        sign: "+" also for positive numbers, as differences have it.
    """
    if interval is None:
        return ""
    value, low, high = (f"{interval[name]:{sign}.{decimals}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
