"""Which layers follow segments, where not all do."""

import re
from collections.abc import Iterable
from typing import Any

from segattn.errors import SegmentError

__all__ = ["chosen_layers", "head_count", "layer_count"]


def layer_count(model: Any) -> int:
    """Return how many decoder layers a transformers model has."""
    return int(model.config.get_text_config(decoder=True).num_hidden_layers)


def head_count(model: Any) -> int:
    """Return how many query heads a layer of a transformers model has; 1 where its config does not say."""
    return int(getattr(model.config.get_text_config(decoder=True), "num_attention_heads", 1) or 1)


def chosen_layers(layers: "str | Iterable[int] | None", count: int) -> tuple[int, ...] | None:
    """Return the chosen layers in ascending order, None for all of them.

    Args:
        layers: numbers from 0 on, or a text such as "0-14" or "0-3,8,12-14".
        count: how many layers the model has.

    Raises:
        SegmentError: no layer, one that the model does not have, or a text that is no list of layers.
    """
    if layers is None:
        return None
    chosen = sorted(set(_parsed(layers) if isinstance(layers, str) else layers))
    whole = all(isinstance(layer, int) and not isinstance(layer, bool) for layer in chosen)
    if not chosen or not whole or chosen[0] < 0 or chosen[-1] >= count:
        raise SegmentError(
            f"layers is {layers!r}; expected some of the model's {count} layers, counted from 0, e.g. "
            f"'0-{max(count // 2 - 1, 0)}'"
        )
    return None if len(chosen) == count else tuple(chosen)


def _parsed(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
            raise SegmentError(
                f"layers is {text!r}, in which {part!r} is no layer and no range; expected e.g. '0-14' or '0-3,8,12-14'"
            )
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found
