"""What several texts or token sequences begin or end with."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

__all__ = ["common_prefix", "common_suffix"]

Items = TypeVar("Items", str, tuple[int, ...])


def common_prefix(sequences: Iterable[Items]) -> Items:
    """Return the longest beginning that all share; of no sequences, that of none (a ValueError)."""
    several = list(sequences)
    if not several:
        raise ValueError("common_prefix got no sequences; expected at least one")
    return several[0][: _shared(several)]


def common_suffix(sequences: Iterable[Items]) -> Items:
    """Return the longest end that all share; see `common_prefix`."""
    return common_prefix([sequence[::-1] for sequence in sequences])[::-1]


def _shared(several: Sequence[Sequence[object]]) -> int:
    shortest = min(len(sequence) for sequence in several)
    return next((i for i in range(shortest) if len({sequence[i] for sequence in several}) > 1), shortest)
