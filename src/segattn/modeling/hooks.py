"""The forward hooks of an enabled model: one begins a pass and settles its segment ids, one ends it."""

import inspect
from typing import Any

from torch import nn

from segattn.modeling.forward_pass import begin, end
from segattn.modeling.state import SegmentState

__all__ = ["BeginPass", "EndPass", "call_arguments", "parameter_names"]


def parameter_names(function: Any) -> tuple[str, ...]:
    """Return the names of a method's parameters, without `self`."""
    return tuple(inspect.signature(function).parameters)[1:]


def call_arguments(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Name the positional arguments of a call."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


# Classes and not closures: an enabled model can be copied and pickled, hooks included.
class BeginPass:
    """Forward pre-hook: begin a pass, settle its segment ids, and hide them from the stock forward."""

    def __init__(self, state: SegmentState, names: tuple[str, ...], depth: int) -> None:
        self.state = state
        self.names = names
        self.depth = depth

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the call's arguments without `segment_ids`."""
        # The model's own pass begins in the forward of its enabled class, unless a wrapper (accelerate, a faster loss)
        # stands before that: Ctrl-C ends a pass for certain only there.
        if self.depth == 0 and "forward" not in module.__dict__:
            return args, kwargs
        begun = begin(self.state, module, self.depth, told=kwargs.get("segment_ids") is not None)
        if begun is not None:
            try:
                self.state.settle(begun, call_arguments(self.names, args, kwargs), module.config)
            except BaseException:  # also Ctrl-C, after which torch runs no hook that could end the pass
                end(module, succeeded=False)
                raise
        return args, {name: value for name, value in kwargs.items() if name != "segment_ids"}


class EndPass:
    """Forward hook: end the pass that the module began, whether or not it returned."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        """End the pass; torch passes None as the output of a call that raised."""
        end(module, succeeded=output is not None)
