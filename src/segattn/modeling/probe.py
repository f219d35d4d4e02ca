"""Look into a loaded model: read from each layer which tokens it really lets each token see.

One forward pass reads the whole mask of every layer. The batch holds copies of one sequence. Before each layer, a hook
replaces the hidden states: random numbers, the same in every copy, except that copy j has other numbers at position j.
After the layer, the positions at which copy j differs from an untouched copy are those that see token j. So nothing of
the model's own masking is trusted: not its arguments, not its mask tensors, only what flows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segattn.errors import UnsupportedModelError
from segattn.modeling.families import backbone_of, pretrained_model_of

__all__ = ["Layer", "Reading", "decoder_layers", "read_layers"]

# A token that happens to get next to no attention changes nothing that could be seen: try several numbers for each.
_DRAWS = 4


@dataclass
class Reading:
    """What one layer was seen to do in one pass.

    Attributes:
        sees: bool (n, columns): whether a token sees the token of a column.
        columns: the positions that were changed.
    """

    sees: Tensor
    columns: list[int]


@dataclass(frozen=True)
class Layer:
    """A decoder layer and its name in the model."""

    name: str
    module: nn.Module


def decoder_layers(model: nn.Module) -> list[Layer]:
    """Find the layers of a decoder: the outermost list of modules as long as the config says, or the longest list.

    Raises:
        UnsupportedModelError: no list of layers is found.
    """
    inner = pretrained_model_of(model)
    backbone = backbone_of(inner)
    names = {id(module): name for name, module in inner.named_modules()}
    lists = [(name, module) for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList)]
    expected = getattr(backbone.config, "num_hidden_layers", None)
    outermost = sorted(lists, key=lambda item: item[0].count("."))
    chosen = next((module for _, module in outermost if len(module) == expected), None)
    if chosen is None:
        chosen = max((module for _, module in outermost), key=len, default=None)
    if chosen is None or not len(chosen):
        raise UnsupportedModelError(
            f"{type(inner).__name__} has no list of layers to look into, so whether its attention follows segments "
            "cannot be checked"
        )
    return [Layer(names[id(module)], module) for module in chosen]


@torch.no_grad()
def read_layers(
    model: Any, layers: list[Layer], input_ids: Tensor, columns: list[int], seed: int = 0, **inputs: Tensor
) -> dict[str, list[Reading]]:
    """Run the model once on copies of one sequence and read every layer's mask.

    Args:
        model: takes input_ids and `inputs`.
        layers: of the model.
        input_ids: int64 (1, n).
        columns: the positions to change, one copy of the sequence each.
        seed: of the hidden states.
        inputs: further tensors (1, n), repeated for the copies.

    Returns:
        Layer name -> a reading for each time that the layer ran; a layer that never ran is missing.
    """
    copies = _copies(columns)
    found: dict[str, list[Reading]] = {}
    handles = []
    for number, layer in enumerate(layers):
        swap = _Swap(columns, input_ids.shape[1], seed=1000 * seed + number)
        handles.append(layer.module.register_forward_pre_hook(swap.before, with_kwargs=True))
        handles.append(layer.module.register_forward_hook(_record(found.setdefault(layer.name, []), swap)))
    repeated = {name: value.repeat_interleave(copies, 0) for name, value in inputs.items()}
    try:
        with evaluating(model):
            model(input_ids=input_ids.repeat_interleave(copies, 0), use_cache=False, **repeated)
    finally:
        for handle in handles:
            handle.remove()
    return {name: readings for name, readings in found.items() if readings}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block, and give every module its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _Swap:
    """Replaces what enters a layer; knows which axes of the hidden states are batch and position."""

    def __init__(self, columns: list[int], length: int, seed: int) -> None:
        self.columns = columns
        self.copies, self.length = _copies(columns), length
        self.seed = seed
        self.axes: tuple[int, int] | None = None

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Swap the hidden states, the first argument or `hidden_states`."""
        if args and isinstance(args[0], Tensor):
            return (self._swapped(args[0]), *args[1:]), kwargs
        hidden = kwargs.get("hidden_states")
        if not isinstance(hidden, Tensor):
            raise UnsupportedModelError(
                f"the layer {type(module).__name__} takes no hidden states as its first argument, so what it sees "
                "cannot be read"
            )
        return args, {**kwargs, "hidden_states": self._swapped(hidden)}

    def _swapped(self, hidden: Tensor) -> Tensor:
        self.axes = self._find_axes(hidden)
        swapped = self._numbers(hidden, self.seed)
        for draw in range(_DRAWS):
            other = self._numbers(hidden, self.seed + 7919 * (draw + 1))
            for row, column in enumerate(self.columns, start=1 + draw * (1 + len(self.columns))):
                _at(swapped, self.axes, row, column).copy_(_at(other, self.axes, row, column))
        return swapped

    def _find_axes(self, hidden: Tensor) -> tuple[int, int]:
        shape = list(hidden.shape)
        batch = next((axis for axis, size in enumerate(shape) if size == self.copies), None)
        position = next((axis for axis, size in enumerate(shape) if size == self.length and axis != batch), None)
        if batch is None or position is None:
            raise UnsupportedModelError(
                f"its layers take hidden states of shape {tuple(shape)} for {self.copies} sequences of {self.length} "
                "tokens, so what a layer sees cannot be read"
            )
        return batch, position

    def _numbers(self, like: Tensor, seed: int) -> Tensor:
        """Random numbers, the same for every copy: of size 1, so that no channel drowns a change in another."""
        assert self.axes is not None
        one = like.select(self.axes[0], 0)
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.randn(one.shape, generator=generator, dtype=torch.float32).to(like.device, like.dtype)
        return numbers.unsqueeze(self.axes[0]).expand_as(like).contiguous()


def _at(tensor: Tensor, axes: tuple[int, int], row: int, column: int) -> Tensor:
    index: list[Any] = [slice(None)] * tensor.ndim
    index[axes[0]], index[axes[1]] = row, column
    return tensor[tuple(index)]


def _record(readings: list[Reading], swap: _Swap) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001
        result = output if isinstance(output, Tensor) else output[0]
        readings.append(Reading(_changed(result, swap), swap.columns))

    return hook


def _changed(output: Tensor, swap: _Swap) -> Tensor:
    """Which positions of each copy differ from the untouched copies: bool (n, columns)."""
    assert swap.axes is not None
    batch, position = swap._find_axes(output)
    rows = output.movedim((batch, position), (0, 1)).flatten(2).double()  # (copies, n, features)
    # An untouched copy, then the draws, each followed by an untouched copy. These have equal inputs, but may differ in
    # the last digits, where a kernel treats the rows of a batch differently.
    blocks = rows[1:].unflatten(0, (_DRAWS, -1))
    untouched, changed = blocks[:, -1], blocks[:, :-1]
    noise = 4 * (untouched - rows[0]).abs().amax(0)
    if output.dtype in (torch.float32, torch.float64):  # in half precision that much would hide true changes
        noise = noise + torch.finfo(output.dtype).eps * rows[0].abs()
    differs = ((changed - rows[0]).abs() > noise).any(-1).any(0)  # (columns, n)
    return differs.T.cpu()


def _copies(columns: list[int]) -> int:
    return 1 + _DRAWS * (len(columns) + 1)
