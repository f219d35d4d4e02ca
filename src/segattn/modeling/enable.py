"""Switch a loaded model to segment attention, in place and reversibly."""

import copy
import functools
import inspect
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from segattn.errors import SegmentError, UnsupportedModelError
from segattn.modeling import masking
from segattn.modeling.families import backbone_of, check_supported, pretrained_model_of
from segattn.modeling.state import SegmentState, call_arguments, clear_on_exit
from segattn.modeling.wrapping import enabled_class, stock_class

if TYPE_CHECKING:
    from segattn.templates import Segmenter

__all__ = ["CONFIG_KEY", "causal", "disable", "enable", "is_enabled", "segmenter_of", "set_opening"]

CONFIG_KEY = "segment_attention"
"""Where config.json records the segmentation of a checkpoint."""

Model = TypeVar("Model", bound=nn.Module)

_serial = itertools.count()


def enable(model: Model, segmenter: "Segmenter | None" = None) -> Model:
    """Make a decoder follow segment ids, in place.

    Afterwards `model(...)` and `model.generate(...)` take `segment_ids` (batch, past + new tokens). With a segmenter
    they may be left out: they are derived from the token ids. Without one, a prefill that leaves them out is an error.
    Enabling an enabled model replaces its segmenter, if one is given.

    Args:
        model: a transformers causal language model, bare or wrapped by PEFT or torch.compile.
        segmenter: turns token ids into segment ids; see `segattn.Segmenter`.

    Returns:
        The same object.

    Raises:
        UnsupportedModelError: a family, attention backend or PEFT method that cannot honour segments.
        SegmentError: `segmenter` is not a Segmenter.
    """
    if segmenter is not None and not hasattr(segmenter, "segment_ids"):
        raise SegmentError(
            f"segmenter is a {type(segmenter).__name__}; expected a segattn.Segmenter, e.g. "
            "segattn.Segmenter.from_tokenizer(tokenizer)"
        )
    inner = pretrained_model_of(model)
    state = _state_of(inner)
    if state is None:
        state = _install(model, inner, segmenter)
    elif segmenter is not None:
        state.segmenter = segmenter
    inner.config.segment_attention = {
        "format": 1,
        "segmenter": None if state.segmenter is None else state.segmenter.to_dict(),
    }
    if model is not inner and hasattr(model, "peft_config") and stock_class(type(model)) is type(model):
        model.__class__ = enabled_class(type(model), adapter=True)
    return model


def disable(model: Model) -> Model:
    """Give the stock model back, in place; a model that is not enabled stays as it is."""
    inner = pretrained_model_of(model)
    state = _state_of(inner)
    if stock_class(type(model)) is not type(model):
        model.__class__ = stock_class(type(model))
    if state is None:
        return model
    _uninstall(inner, state)
    return model


def is_enabled(model: nn.Module) -> bool:
    """Tell whether the model (or the one inside its wrappers) follows segments."""
    return _state_of(pretrained_model_of(model)) is not None


def segmenter_of(model: nn.Module) -> "Segmenter | None":
    """Return the segmenter of an enabled model, None if it has none.

    Raises:
        UnsupportedModelError: the model is not enabled.
    """
    return _require_state(model).segmenter


@contextmanager
def causal(model: nn.Module) -> Iterator[None]:
    """Run an enabled model causally on purpose; segment ids given inside the block are ignored.

    Raises:
        UnsupportedModelError: the model is not enabled.
    """
    state = _require_state(model)
    state.causal_depth += 1
    try:
        yield
    finally:
        state.causal_depth -= 1


def set_opening(model: nn.Module, bias: float | None) -> None:
    """Weaken the keys ahead: add `bias` to the scores that segments allow and causal attention forbids.

    Training that opens segments gradually raises the bias from about -8 to 0. None gives the plain rule.

    Args:
        model: an enabled model.
        bias: a number <= 0, or None.

    Raises:
        UnsupportedModelError: the model is not enabled.
        SegmentError: `bias` is positive or not a number.
    """
    if bias is not None and not bias <= 0:
        raise SegmentError(f"the opening bias is {bias!r}; expected a number <= 0, or None for the plain rule")
    _require_state(model).opening_bias = bias


def _state_of(inner: Any) -> SegmentState | None:
    state: SegmentState | None = inner.__dict__.get("_segattn_state")
    return state


def _require_state(model: nn.Module) -> SegmentState:
    state = _state_of(pretrained_model_of(model))
    if state is None:
        raise UnsupportedModelError(f"{type(model).__name__} is not enabled; call segattn.enable(model) first")
    return state


def _install(model: nn.Module, inner: Any, segmenter: "Segmenter | None") -> SegmentState:
    base = check_supported(inner)
    state = SegmentState(base, f"segattn_{base}_{next(_serial)}", segmenter)
    masking.register(state)
    # Other models may share this config object: give this one its own before changing it.
    stock_configs = _replace_configs(model, inner)
    inner.config._attn_implementation = state.implementation
    handles = []
    for module in _captured_modules(inner):
        capture = functools.partial(_capture, state, inspect.signature(stock_class(type(module)).forward))
        handles.append(module.register_forward_pre_hook(capture, with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(clear_on_exit(state), always_call=True))
    inner.__dict__["_segattn_state"] = state
    inner.__dict__["_segattn_undo"] = (stock_configs, handles)
    inner.__class__ = enabled_class(type(inner))
    return state


def _uninstall(inner: Any, state: SegmentState) -> None:
    stock_configs, handles = inner.__dict__.pop("_segattn_undo")
    del inner.__dict__["_segattn_state"]
    for handle in handles:
        handle.remove()
    for module, config in stock_configs:
        module.config = config
    inner.__class__ = stock_class(type(inner))
    masking.unregister(state)


def _captured_modules(inner: Any) -> list[nn.Module]:
    backbone = backbone_of(inner)
    return [inner] if backbone is inner else [inner, backbone]


def _replace_configs(model: nn.Module, inner: Any) -> list[tuple[nn.Module, Any]]:
    """Put one deep copy of the model's config into every module that holds it; return what stood there."""
    copies: dict[int, Any] = {}
    copy.deepcopy(inner.config, copies)
    held = [(module, module.__dict__["config"]) for module in model.modules() if "config" in module.__dict__]
    stock = [(module, config) for module, config in held if id(config) in copies]
    for module, config in stock:
        module.config = copies[id(config)]
    return stock


def _capture(
    state: SegmentState, signature: inspect.Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook: settle the segment ids, and hide them from the stock forward."""
    config: Any = module.config
    state.enter(module, call_arguments(signature, args, kwargs), config)
    return args, {name: value for name, value in kwargs.items() if name != "segment_ids"}
