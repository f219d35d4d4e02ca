"""Stored keys and values into a transformers cache, and back: always copies, so that what is stored never changes."""

from typing import Any

import torch
from torch import Tensor

from segattn.generation.prefix_tree import KeysValues, Match, copied_pair

__all__ = ["assemble", "copied", "empty_cache", "states_between"]


def empty_cache(config: Any) -> Any:
    """Return a DynamicCache that keeps every token, also in the layers that see only a window of them.

    A later request may continue before the window of this one. The masks are those of the window all the same.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    cache = DynamicCache(config=config.get_text_config(decoder=True))
    cache.layers = [DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer for layer in cache.layers]
    return cache


def assemble(config: Any, rows: list[tuple[int, list[Match]]], columns: int) -> Any:
    """Fill a cache with the first columns of a left-padded batch.

    Args:
        config: of the model.
        rows: per row, its padding and what is known of its tokens.
        columns: how many columns to fill, padding included; zeros stand there, which the padding mask hides.

    Returns:
        a DynamicCache of new tensors.
    """
    cache = empty_cache(config)
    for number, layer in enumerate(cache.layers):
        filled = [_layer_of(matches, number) for _, matches in rows]
        shapes = next((states[0] for states in filled if states), None)
        if shapes is None:
            continue
        keys, values = (
            torch.cat(
                [
                    _row(states, part, padding, columns, shapes)
                    for states, (padding, _) in zip(filled, rows, strict=True)
                ]
            )
            for part in (0, 1)
        )
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
    return cache


def copied(cache: Any, copies: int) -> None:
    """Give each row of a cache several rows, for its beams or samples, as transformers orders them."""
    for layer in cache.layers if copies > 1 else ():
        if layer.is_initialized and layer.keys is not None:
            layer.batch_repeat_interleave(copies)


def _layer_of(matches: list[Match], number: int) -> list[tuple[Tensor, Tensor]]:
    layers = [(match.states[number], match.count) for match in matches]
    return [(layer[0][..., :count, :], layer[1][..., :count, :]) for layer, count in layers if layer is not None]


def _row(
    states: list[tuple[Tensor, Tensor]], part: int, padding: int, columns: int, like: tuple[Tensor, Tensor]
) -> Tensor:
    """One row's keys (part 0) or values (part 1) of a layer, (1, heads, columns, size)."""
    before = like[part].new_zeros((*like[part].shape[:2], min(padding, columns), like[part].shape[-1]))
    return torch.cat([before, *(layer[part] for layer in states)], dim=-2)[..., :columns, :]


def states_between(cache: Any, row: int, start: int, end: int) -> KeysValues:
    """Copy one row's keys and values of some columns out of a cache."""
    rows = slice(row, row + 1)
    return tuple(
        None if layer.keys is None else copied_pair(layer.keys[rows], layer.values[rows], start, end)
        for layer in cache.layers
    )
