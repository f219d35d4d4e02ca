"""The class of an enabled model: its own class with a forward, generate and save that know segments.

An instance's class is swapped for a subclass of the same name, so that `generate()` and trainers, which read
signatures, accept `segment_ids`, and `save_pretrained` writes the same architecture name.
"""

import functools
import inspect
from typing import Any

from torch import Tensor

from segattn.modeling.adapters import adapter_members, load_members
from segattn.modeling.forward_pass import begin, current, end
from segattn.modeling.generation import generation_members, with_segment_ids
from segattn.modeling.hooks import call_arguments, parameter_names
from segattn.modeling.state import SegmentState

__all__ = ["enabled_class", "stock_class"]


def enabled_class(cls: type[Any], *, adapter: bool = False) -> type[Any]:
    """Return the subclass of `cls` that knows segments; `adapter` for a PEFT wrapper, which only saves."""
    key: Any = cls  # mypy does not take a metaclass for hashable
    return _enabled_class(key, adapter)


@functools.cache
def _enabled_class(cls: Any, adapter: bool) -> type[Any]:
    members: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "_segattn_stock_class": cls,
        "__reduce_ex__": functools.partialmethod(_reduce, cls, adapter),
    }
    if adapter:
        members.update(adapter_members(cls))
    else:
        members.update(load_members(cls))
        members["forward"] = _forward(cls)
        if hasattr(cls, "generate"):
            members.update(generation_members(cls))
    return type(cls.__name__, (cls,), members)


def _reduce(self: Any, cls: type[Any], adapter: bool, protocol: int) -> tuple[Any, ...]:  # noqa: ARG001
    """Copy and pickle by the stock class, for the class of an enabled model exists in no module."""
    return _new, (cls, adapter), self.__dict__


def _new(cls: type[Any], adapter: bool) -> Any:
    enabled = enabled_class(cls, adapter=adapter)
    return object.__new__(enabled)


def stock_class(cls: type[Any]) -> type[Any]:
    """Return the class an enabled class was made from; any other class itself."""
    stock: type[Any] = cls.__dict__.get("_segattn_stock_class", cls)
    return stock


class _Call:
    """Owns the pass of one call; torch.compile cannot make a bare `object()`."""


def _forward(cls: type[Any]) -> Any:
    signature, names = inspect.signature(cls.forward), parameter_names(cls.forward)

    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, segment_ids: Tensor | None = None, **kwargs: Any) -> Any:
        state: SegmentState | None = self.__dict__.get("_segattn_state")
        if state is None:  # disabled since, but a wrapper (accelerate, torch.compile) has kept this method
            return cls.forward(self, *args, **kwargs)
        # Where another forward stood before this one when the model was enabled, a hook has begun the pass.
        under_way = current()
        owner: object = self if under_way is not None and under_way.owner is self else _Call()
        try:
            if owner is not self:
                begun = begin(state, owner)
                assert begun is not None
                state.settle(begun, call_arguments(names, args, {**kwargs, "segment_ids": segment_ids}), self.config)
            output = cls.forward(self, *args, **kwargs)
        except BaseException:  # also Ctrl-C, which torch's hooks do not see
            end(owner, succeeded=False)
            raise
        if owner is not self:
            end(owner, succeeded=True)
        return output

    forward.__signature__ = with_segment_ids(signature)  # type: ignore[attr-defined]
    return forward
