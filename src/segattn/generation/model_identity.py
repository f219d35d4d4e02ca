"""What keys and values depend on beside the tokens: the model, its weights as they are now, and its adapters."""

import hashlib
import json
import sys
from typing import Any

import torch
from torch import Tensor

from segattn.errors import UnsupportedModelError
from segattn.modeling.hooks import parameter_names
from segattn.modeling.prefill import why_in_one_pass

__all__ = [
    "adapters_of",
    "check_model",
    "config_digest",
    "counts_positions",
    "setting_of",
    "weights_digest",
    "weights_version",
]

_LAYERS = {"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"}

# Entries of a config that say nothing about keys and values.
_INCIDENTAL = ("transformers_version", "architectures", "segment_attention", "use_cache", "dtype", "torch_dtype")

_SAMPLED = 256


def check_model(model: Any) -> None:
    """Refuse a model whose prefixes cannot be cut out of its cache and put into another.

    Args:
        model: a transformers model.

    Raises:
        UnsupportedModelError: names what stands in the way.
    """
    reason = _why_not(model)
    if reason is not None:
        raise UnsupportedModelError(
            f"a prefix cache cannot serve {type(model).__name__}: {reason}. Generate without prefix_cache; a "
            "conversation can still go on with past_key_values"
        )


def _why_not(model: Any) -> str | None:
    from transformers.cache_utils import DynamicCache

    config = model.config
    if config.is_encoder_decoder:
        return "it is an encoder-decoder model, whose decoder also depends on the encoder's input"
    text = config.get_text_config(decoder=True)
    if text is not config:
        return "it also takes images or audio, which token ids do not tell apart"
    if not model._supports_default_dynamic_cache() or getattr(model, "_is_stateful", False):
        return "it has a recurrent state, which cannot be cut at a token"
    if "chunked_attention" in (getattr(text, "layer_types", None) or ()):
        return "it has layers of chunked attention, which was not compared"
    try:
        layers = {type(layer).__name__ for layer in DynamicCache(config=text).layers}
    except (KeyError, AttributeError, ValueError) as error:
        return f"its cache layers are not known ({error})"
    if layers - _LAYERS:
        return f"its cache has layers that cannot be cut at a token ({', '.join(sorted(layers - _LAYERS))})"
    return why_in_one_pass(config)


def counts_positions(model: Any) -> bool:
    """Tell whether a model takes the positions that generation counts without padding."""
    return "position_ids" in parameter_names(type(model).forward)


def weights_version(model: Any) -> tuple[Any, ...]:
    """Return what changes when any weight is replaced or written to, as an optimizer or `load_state_dict` does.

    A write through `parameter.data` is seen by nothing: call `clear()` after one.
    """
    return tuple((_address(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in model.parameters())


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a tensor subclass without a storage of its own
        return id(tensor)


def setting_of(model: Any) -> tuple[Any, ...]:
    """Return what keys and values depend on that is switched back and forth: adapters, precision, device."""
    device = model.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    state = vars(model).get("_segattn_state")
    bias, layers = (None, None) if state is None else (state.opening_bias, state.recorded().layers)
    bias = tuple(bias.flatten().tolist()) if isinstance(bias, Tensor) else bias
    return (adapters_of(model), model.dtype, str(model.device), autocast, bias, layers)


def adapters_of(model: Any) -> str:
    """Describe the adapters that shape the next pass: active, merged, disabled, with their scales; "" without any."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None:
        return ""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, tuners.BaseTunerLayer)]
    kinds = set()
    for layer in layers:
        active = () if layer.disable_adapters else tuple(layer.active_adapters)
        scaling = getattr(layer, "scaling", None)
        scales = tuple((name, scaling.get(name) if isinstance(scaling, dict) else None) for name in active)
        kinds.add(f"active {list(scales)}, merged {list(layer.merged_adapters)}")
    return "; ".join(sorted(kinds))


def config_digest(model: Any) -> str:
    """Return the sha256 of the model's configuration, without what says nothing about keys and values."""
    entries = {name: value for name, value in model.config.to_dict().items() if not name.startswith("_")}
    kept = {name: value for name, value in entries.items() if name not in _INCIDENTAL}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def weights_digest(model: Any) -> str:
    """Return a sha256 over every parameter's name, shape and type, and the bytes of 256 of its elements.

    The elements stand at equal steps. Training changes nearly all elements of a tensor, so it changes these.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(), key=lambda named: named[0]):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        flat = parameter.detach().reshape(-1)
        count = min(_SAMPLED, flat.numel())
        places = torch.arange(count, device=flat.device) * (flat.numel() - 1) // max(count - 1, 1)
        digest.update(bytes(flat[places].contiguous().view(torch.uint8).cpu().tolist()))
    return digest.hexdigest()
