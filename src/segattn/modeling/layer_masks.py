"""Masks that differ from layer to layer: segments in some layers only, or opened by another bias in each."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from segattn.attention.slices import SlicePlan
from segattn.errors import UnsupportedModelError

__all__ = ["LayerMasks", "additive_mask", "check_bias"]


def check_bias(bias: "float | Tensor | None") -> bool:
    """Whether an opening bias is one: a number, or one per layer (layers,) or head (layers, heads), none above 0."""
    if bias is None:
        return True
    if isinstance(bias, Tensor):
        return bias.ndim in (1, 2) and bias.is_floating_point() and bool((bias.detach() <= 0).all())
    return bias <= 0


def additive_mask(causal: Tensor, allowed: Tensor, bias: "float | Tensor", dtype: torch.dtype) -> Tensor:
    """Return a mask to add to scores: `bias` on keys that segments allow and causal forbids, the least on others.

    Args:
        causal: bool (B, 1, Q, K).
        allowed: as `causal`, with the segments opened.
        bias: a number, or one per head (H,).
        dtype: of the scores.

    Returns:
        (B, 1 or H, Q, K).
    """
    given = 0.0 if isinstance(bias, Tensor) else bias
    zero, ahead, never = (
        torch.tensor(value, dtype=dtype, device=allowed.device) for value in (0.0, given, torch.finfo(dtype).min)
    )
    if isinstance(bias, Tensor):
        ahead = bias.to(device=allowed.device, dtype=dtype).view(1, -1, 1, 1)
    return torch.where(causal, zero, torch.where(allowed, ahead, never))


class LayerMasks:
    """The masks of one pass, by layer.

    Args:
        shape: (B, Q, K).
        layers: those that follow segments; None for all.
        bias: on the keys ahead: a number, (layers,), (layers, heads), or None for the plain rule.
        causal: makes the stock mask; None where the stock attention needs none.
        segments: makes the mask, or the plan of slices, of the plain rule.
        opened: makes an additive mask from the bias of a layer.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        layers: Collection[int] | None,
        bias: "float | Tensor | None",
        causal: Callable[[], Tensor | None],
        segments: Callable[[], "SlicePlan | Tensor"],
        opened: Callable[["float | Tensor"], Tensor],
    ) -> None:
        self.shape = shape
        self._layers = layers
        self._bias = bias
        self._causal = causal
        self._segments = segments
        self._opened = opened
        self._made: dict[str, Any] = {}
        # Read once: on a GPU each look at a number waits for the device.
        fixed = isinstance(bias, Tensor) and not bias.requires_grad
        self._numbers = bias.tolist() if isinstance(bias, Tensor) and fixed else None

    def of_layer(self, module: Any) -> "SlicePlan | Tensor | None":
        """Return what an attention module computes under: a plan of slices, a mask, or None for the stock causal run.

        Raises:
            UnsupportedModelError: the module does not know its place among the layers.
        """
        layer = getattr(module, "layer_idx", None)
        if not isinstance(layer, int):
            raise UnsupportedModelError(
                f"{type(module).__name__} does not tell which layer it is in (layer_idx), so layers cannot be told "
                "apart; leave `layers` out, and open segments with one bias for all layers"
            )
        if self._layers is not None and layer not in self._layers:
            return self._once("causal", self._causal)
        bias = self._bias[layer] if isinstance(self._bias, Tensor) else self._bias
        if bias is None or (self._numbers is not None and not _any(self._numbers[layer])):
            return self._once("segments", self._segments)
        if isinstance(bias, Tensor):
            return self._opened(bias)
        return self._once("opened", lambda: self._opened(bias))

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


def _any(numbers: "float | list[float]") -> bool:
    return any(numbers) if isinstance(numbers, list) else numbers != 0
