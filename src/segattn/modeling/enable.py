"""Switch a loaded model to segment attention, in place and reversibly."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from torch import Tensor, nn

from segattn.errors import SegmentError, UnsupportedModelError
from segattn.modeling.families import (
    attends_as_published,
    backbone_of,
    check_backend,
    check_release,
    is_spread,
    known_status,
    pretrained_model_of,
    takes_slices,
)
from segattn.modeling.hooks import BeginPass, EndPass, parameter_names
from segattn.modeling.layer_attention import SLICED_IMPLEMENTATIONS
from segattn.modeling.layer_choice import chosen_layers, layer_count
from segattn.modeling.layer_masks import check_bias
from segattn.modeling.segmentation_entry import CONFIG_KEY, entry_of
from segattn.modeling.state import Backend, SegmentState
from segattn.modeling.verdict import ProbeInput, Verdict, causal_output, judge, probe_input
from segattn.modeling.wrapping import enabled_class, stock_class

if TYPE_CHECKING:
    from segattn.templates import Segmenter

__all__ = ["causal", "disable", "enable", "is_enabled", "opening_of", "probe", "segmenter_of", "set_opening"]

Model = TypeVar("Model", bound=nn.Module)


def enable(
    model: Model,
    segmenter: "Segmenter | None" = None,
    *,
    allow_partial: bool = False,
    backend: Backend | None = None,
    layers: "str | Iterable[int] | None" = None,
) -> Model:
    """Make a decoder follow segment ids, in place.

    Afterwards `model(...)` and `model.generate(...)` take `segment_ids` (batch, past + new tokens). With a segmenter
    they may be left out: they are derived from the token ids. Without one, a prefill that leaves them out is an error.
    Enabling an enabled model replaces its segmenter, if one is given.

    A class that is not in the verified table (docs/families.md), of another transformers release, or with patched
    methods is probed first: a few forward passes over ten tokens show what each layer really sees.

    Args:
        model: a transformers causal language model, bare or wrapped by PEFT or torch.compile.
        segmenter: turns token ids into segment ids; see `segattn.Segmenter`.
        allow_partial: accept a hybrid whose attention layers follow segments and whose recurrent layers cannot.
        backend: how attention is computed under segments. "auto" (the default): slice by slice, without a mask, where
            the family allows it and it is expected to be faster; "dense": under a mask of n x n; "sliced": slice by
            slice wherever slices can express the mask (not with padding inside of a row, or when compiled).
        layers: the decoder layers that follow segments, counted from 0, as numbers or "0-14"; the others run causally,
            in training and at inference. None: all. The model is probed then.

    Returns:
        The same object.

    Raises:
        UnsupportedModelError: a family, attention backend or PEFT method that cannot honour segments; where a layer
            does not follow them, the message names it. Also backend="sliced" for layers that cannot run slices.
        SegmentError: `segmenter` is not a Segmenter; an unknown backend, or another one than the model is enabled with;
            the same of `layers`.
    """
    if backend is not None and backend not in get_args(Backend):
        raise SegmentError(f"backend is {backend!r}; expected one of {', '.join(get_args(Backend))}")
    if segmenter is not None and not hasattr(segmenter, "segment_ids"):
        raise SegmentError(
            f"segmenter is a {type(segmenter).__name__}; expected a segattn.Segmenter, e.g. "
            "segattn.Segmenter.from_tokenizer(tokenizer)"
        )
    inner = pretrained_model_of(model)
    chosen = chosen_layers(layers, layer_count(inner)) if layers is not None else None
    state = _state_of(inner)
    if state is None:
        wanted = _Installation(segmenter, backend or "auto", slices=False, layers=chosen)
        state = _install_checked(model, inner, wanted, allow_partial)
    elif layers is not None and chosen != state.own_layers:
        raise SegmentError(
            f"the model is enabled with segments in {_named(state.own_layers)}; call segattn.disable(model) before "
            f"enabling it with segments in {_named(chosen)}"
        )
    elif backend not in (None, state.backend):
        raise SegmentError(
            f"the model is enabled with backend={state.backend!r}; call segattn.disable(model) before enabling it with "
            f"backend={backend!r}"
        )
    elif segmenter is not None:
        state.segmenter = segmenter
    setattr(inner.config, CONFIG_KEY, entry_of(state.own_segmenter, state.own_layers))
    if model is not inner and hasattr(model, "peft_config") and stock_class(type(model)) is type(model):
        model.__class__ = enabled_class(type(model), adapter=True)
    return model


def _named(layers: tuple[int, ...] | None) -> str:
    return "all layers" if layers is None else f"the layers {', '.join(map(str, layers))}"


def disable(model: Model) -> Model:
    """Give the stock model back, in place; a model that is not enabled stays as it is."""
    inner = pretrained_model_of(model)
    state = _state_of(inner)
    if stock_class(type(model)) is not type(model):
        model.__class__ = stock_class(type(model))
    if state is None:
        return model
    _uninstall(inner)
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

    Other threads are not affected, unless the model is compiled.

    Raises:
        UnsupportedModelError: the model is not enabled.
    """
    with _require_state(model).causal():
        yield


def opening_of(model: nn.Module) -> float | Tensor | None:
    """Return what `set_opening` has set last."""
    return _require_state(model).opening_bias


def set_opening(model: nn.Module, bias: float | Tensor | None) -> None:
    """Weaken the keys ahead: add `bias` to the scores that segments allow and causal attention forbids.

    Training that opens segments gradually raises the bias from about -8 to 0. None gives the plain rule.

    Args:
        model: an enabled model.
        bias: a number <= 0, numbers by layer (layers,) or by layer and query head (layers, heads), floating and
            perhaps with gradients; or None. Numbers by layer need a class with slices (docs/families.md).

    Raises:
        UnsupportedModelError: the model is not enabled, or its layers cannot be told apart.
        SegmentError: `bias` is positive or not a number, or of another shape.
    """
    state = _require_state(model)
    if not check_bias(bias):
        raise SegmentError(f"the opening bias is {bias!r}; expected numbers <= 0, or None for the plain rule")
    if isinstance(bias, Tensor):
        expected = (layer_count(pretrained_model_of(model)), state.heads)
        if tuple(bias.shape) != expected[: bias.ndim]:
            raise SegmentError(
                f"the opening bias has shape {tuple(bias.shape)}; expected {expected[:1]}, a number per layer, or "
                f"{expected}, a number per query head"
            )
        if not state.slices:
            raise UnsupportedModelError(
                f"{type(pretrained_model_of(model)).__name__} hands one mask to all of its layers, so they cannot open "
                "one by one; use one number for all"
            )
    state.opening_bias = bias


def _state_of(inner: Any) -> SegmentState | None:
    state: SegmentState | None = inner.__dict__.get("_segattn_state")
    return state


def _require_state(model: nn.Module) -> SegmentState:
    state = _state_of(pretrained_model_of(model))
    if state is None:
        raise UnsupportedModelError(f"{type(model).__name__} is not enabled; call segattn.enable(model) first")
    return state


def probe(model: nn.Module, length: int = 10) -> Verdict:
    """Look what each layer of a model really sees, whatever the verified table says of its class.

    A model that is not enabled is looked at under a dense mask.

    Args:
        model: enabled or not; it is left as it was.
        length: of the text that is run, in tokens; to see a layer's window it must be longer than the window.

    Raises:
        UnsupportedModelError: no transformers model, or an attention backend that drops the mask.
    """
    inner = pretrained_model_of(model)
    given = probe_input(inner, length)
    if is_enabled(model):
        with causal(model):
            stock_output = causal_output(inner, given)
        return judge(inner, stock_output, given, _require_state(model).recorded().layers)
    return _probe_installed(model, inner, given, _Installation(None, "dense", slices=False))[1]


@dataclass(frozen=True)
class _Installation:
    """How segments are installed; `slices`: whether layers run our attention function; `layers`: None for all."""

    segmenter: "Segmenter | None"
    backend: Backend
    slices: bool
    layers: tuple[int, ...] | None = None


def _install_checked(model: nn.Module, inner: Any, wanted: _Installation, allow_partial: bool) -> SegmentState:
    """Install on a class that is verified or passes the probe; whether it takes slices is found here.

    Raises:
        UnsupportedModelError: refused, or partial and not allowed to be; slices demanded and not to be had; a release
            of transformers that is too new.
    """
    check_release()
    name, implementation = type(inner).__name__, check_backend(inner)
    status, slices = known_status(inner, implementation), False
    stock = attends_as_published(implementation)  # who registers another attention function wants that one to run
    by_layer, backend = wanted.layers is not None, wanted.backend
    if implementation in SLICED_IMPLEMENTATIONS and stock and not is_spread(inner):
        slices = takes_slices(inner, implementation) if status else implementation == "sdpa"
        if by_layer and not slices:
            # Our attention function hands each layer its mask, and the stock one computes under it.
            slices, wanted = True, replace(wanted, backend="dense")
    if by_layer and not slices:
        raise UnsupportedModelError(
            f"{name} with attn_implementation={implementation!r} cannot run segments in some of its layers: they share "
            "one mask there. Expected attn_implementation='sdpa' or 'eager', on one device; or leave `layers` out"
        )
    slices = slices and (by_layer or backend != "dense")
    wanted = replace(wanted, slices=slices)
    if status is not None and not by_layer:
        state, reason = _install(model, inner, wanted), "its recurrent layers run from left to right"
    else:
        given = probe_input(inner)
        state, verdict = _probe_installed(model, inner, given, wanted, keep=("exact", "partial"))
        if verdict.status == "refused" and slices and not by_layer:
            wanted = replace(wanted, slices=False)
            state, verdict = _probe_installed(model, inner, given, wanted, keep=("exact", "partial"))
        status, reason = verdict.status, verdict.reason
    if status == "refused":
        raise UnsupportedModelError(f"{name} cannot honour segments: {reason}")
    problem = None
    if status == "partial" and not allow_partial:
        problem = (
            f"{name} is a hybrid: its attention layers can follow segments, but {reason}. Call "
            "segattn.enable(model, segmenter, allow_partial=True) if that is what you want"
        )
    elif backend == "sliced" and not wanted.slices:
        problem = (
            f"{name} with attn_implementation={implementation!r} cannot run slices (docs/families.md lists the classes "
            "that can); leave backend out"
        )
    if problem is not None:
        _uninstall(inner)
        raise UnsupportedModelError(problem)
    return state


def _probe_installed(
    model: nn.Module, inner: Any, given: ProbeInput, wanted: _Installation, keep: tuple[str, ...] = ()
) -> tuple[SegmentState, Verdict]:
    """Install, judge, and take it all back unless the verdict is one of `keep`."""
    try:
        stock_output = causal_output(inner, given)
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(inner).__name__} cannot be run on a short text, so whether it follows segments cannot be checked "
            f"({type(error).__name__}: {error})"
        ) from error
    # A short text would not show slices unless they are forced.
    state = _install(
        model,
        inner,
        replace(wanted, backend="sliced" if wanted.slices and wanted.backend != "dense" else wanted.backend),
    )
    verdict = Verdict("refused", "the probe was interrupted", ())
    try:
        verdict = judge(inner, stock_output, given, wanted.layers)
    finally:
        state.backend = wanted.backend
        if verdict.status not in keep:
            _uninstall(inner)
    return state, verdict


def _install(model: nn.Module, inner: Any, wanted: _Installation) -> SegmentState:
    state = SegmentState(inner, check_backend(inner), wanted.segmenter, wanted.backend, wanted.slices, wanted.layers)
    backbone = backbone_of(inner)
    # Other models may share this config object: give this one its own before changing it.
    stock_configs = _replace_configs(model, inner, backbone, state)
    handles = []
    # Trainers call what lies under the head; a model with a vision tower has another whole model between.
    for depth, module in enumerate(dict.fromkeys((inner, inner.base_model, backbone))):
        begin = BeginPass(state, parameter_names(stock_class(type(module)).forward), depth)
        handles.append(module.register_forward_pre_hook(begin, with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(EndPass(), always_call=True))
    inner.__dict__["_segattn_state"] = state
    inner.__dict__["_segattn_undo"] = (stock_configs, handles)
    inner.__class__ = enabled_class(type(inner))
    return state


def _uninstall(inner: Any) -> None:
    stock_configs, handles = inner.__dict__.pop("_segattn_undo")
    del inner.__dict__["_segattn_state"]
    for handle in handles:
        handle.remove()
    for module, config in stock_configs:
        module.config = config
    inner.__class__ = stock_class(type(inner))


def _replace_configs(model: nn.Module, inner: Any, backbone: Any, state: SegmentState) -> list[tuple[nn.Module, Any]]:
    """Give modules a config of their own that names our functions; return what stood there.

    Masks are built by whole models, attention is computed by layers. Layers keep the stock config, and with it the
    stock attention, unless they run slices: where a layer asks its config whether to run SDPA, it finds the stock name.
    """
    from transformers import PreTrainedModel

    copies: dict[int, Any] = {}
    copy.deepcopy(inner.config, copies)
    stock = [
        (module, module.__dict__["config"])
        for module in model.modules()
        if (state.slices or isinstance(module, PreTrainedModel)) and id(module.__dict__.get("config")) in copies
    ]
    for module, config in stock:
        module.config = copies[id(config)]
    # Not the property of this name, which would also rename the attention of a vision tower.
    for config in (inner.config, inner.config.get_text_config(decoder=True), backbone.config):
        config._attn_implementation_internal = state.implementation
    return stock
