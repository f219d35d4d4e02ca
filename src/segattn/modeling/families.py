"""Which models may follow segments, and where the Hugging Face model sits inside its wrappers."""

import sys
from typing import Any

from torch import nn

from segattn.errors import UnsupportedModelError
from segattn.modeling import verified
from segattn.modeling.masking import ATTENTION_IMPLEMENTATIONS

__all__ = [
    "attends_as_published",
    "backbone_of",
    "check_backend",
    "check_release",
    "is_spread",
    "known_status",
    "pretrained_model_of",
    "takes_slices",
]


def pretrained_model_of(model: nn.Module) -> Any:
    """Unwrap `torch.compile`, data parallelism and PEFT down to the transformers model.

    Raises:
        UnsupportedModelError: no transformers model inside, or a PEFT method that adds virtual tokens.
    """
    from transformers import PreTrainedModel

    inner: Any = model
    while not isinstance(inner, PreTrainedModel):
        _refuse_prompt_learning(inner)
        # `_modules`, not getattr: LoRA's wrapper passes unknown names on to the model inside.
        children = [inner._modules.get(name) for name in ("_orig_mod", "module", "base_model", "model")]
        wrapped = next((child for child in children if isinstance(child, nn.Module)), None)
        if wrapped is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} holds no transformers model; expected a PreTrainedModel, bare or wrapped "
                "by PEFT, torch.compile or DistributedDataParallel. Load it with AutoModelForCausalLM.from_pretrained"
            )
        inner = wrapped
    return inner


def _refuse_prompt_learning(wrapper: nn.Module) -> None:
    configs: Any = getattr(wrapper, "peft_config", None)
    for name, config in configs.items() if isinstance(configs, dict) else ():
        if getattr(config, "is_prompt_learning", False):
            raise UnsupportedModelError(
                f"the PEFT adapter {name!r} ({config.peft_type}) puts virtual tokens before the prompt, so segment ids "
                "would not line up with the keys; use LoRA, DoRA or another method that adapts weights"
            )


def backbone_of(model: nn.Module) -> nn.Module:
    """Return the stack of layers under the language-model head; trainers call it directly."""
    from transformers import PreTrainedModel

    decoder: Any = getattr(model, "get_decoder", lambda: model)()
    # In some classes "decoder" is the name of the head.
    return decoder if isinstance(decoder, PreTrainedModel) else getattr(model, "base_model", model)


def check_backend(model: Any) -> str:
    """Return the attention implementation that segments will run on.

    Raises:
        UnsupportedModelError: a backend that drops the mask.
    """
    implementation = model.config.get_text_config(decoder=True)._attn_implementation
    if implementation not in ATTENTION_IMPLEMENTATIONS:
        raise UnsupportedModelError(
            f"attention implementation {implementation!r} would drop or cannot take the segment mask; load the model "
            "with attn_implementation='sdpa' (or 'eager'), or call model.set_attn_implementation('sdpa') first"
        )
    return str(implementation)


_TOO_NEW = (5, 24)  # its `generate` hands caches on under another name, so what they hold would not be counted


def check_release() -> None:
    """Refuse releases of transformers whose caches are not understood.

    Raises:
        UnsupportedModelError: names the release and what to install.
    """
    import transformers

    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) >= _TOO_NEW:
        raise UnsupportedModelError(
            f"transformers {transformers.__version__} is installed, whose caches segattn does not understand yet; run: "
            f"pip install 'transformers>=5.16,<{_TOO_NEW[0]}.{_TOO_NEW[1]}'"
        )


def known_status(model: Any, implementation: str) -> str | None:
    """Return "exact" or "partial" where the verified table speaks of this very code, None where it must be probed.

    The table speaks of the classes of the transformers releases that it was made with, as they were published: not of a
    subclass, a patched method, or an attention function that was registered over the stock one.

    Raises:
        UnsupportedModelError: the table refuses the class; the message has its reason.
    """
    import transformers

    name = type(model).__name__
    if not type(model).__module__.startswith("transformers."):
        return None
    if name in verified.REFUSED:
        raise UnsupportedModelError(f"{name} cannot honour segments: {verified.REFUSED[name]}")
    releases = {release.rpartition(".")[0] for release in verified.TRANSFORMERS}  # a patch release changes no model
    if ".".join(transformers.__version__.split(".")[:2]) not in releases or _modified(model, implementation):
        return None
    for status, table in (("exact", verified.EXACT), ("partial", verified.PARTIAL)):
        if implementation in table.get(name, "").split():
            return status
    return None


def takes_slices(model: Any, implementation: str) -> bool:
    """Whether the layers of a verified class were found to compute slices exactly."""
    return implementation in verified.SLICED.get(type(model).__name__, "").split()


def is_spread(model: Any) -> bool:
    """Whether the model's parts lie on several devices, so that masks are copied from one to the other."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1


# Attention implementation -> names of the mask and the attention function that transformers registers for it.
_STOCK_NAMES: dict[str, tuple[str, str | None]] = {
    "sdpa": ("sdpa_mask", "sdpa_attention_forward"),
    "eager": ("eager_mask", None),
    "flex_attention": ("flex_attention_mask", "flex_attention_forward"),
}
_TRUSTED = frozenset({"transformers", "torch", "peft", "accelerate", "bitsandbytes", "torchao", "segattn"})


def _registered(implementation: str) -> list[Any]:
    from transformers import AttentionInterface, AttentionMaskInterface

    mappings = (AttentionMaskInterface._global_mapping, AttentionInterface._global_mapping)
    return [mapping.get(implementation) for mapping in mappings]


def attends_as_published(implementation: str) -> bool:
    """Whether the functions registered for an attention implementation bear the names of the stock ones."""
    names = tuple(getattr(function, "__name__", None) for function in _registered(implementation))
    return names == _STOCK_NAMES[implementation]


def _modified(model: nn.Module, implementation: str) -> bool:
    """Whether a method or function that computes attention comes from elsewhere than the published libraries."""
    functions = _registered(implementation)
    if not attends_as_published(implementation):
        return True
    for cls in {type(module) for module in model.modules()}:
        functions += [cls.forward, getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)]
    if any(function is not None and _root(function) not in _TRUSTED for function in functions):
        return True
    # accelerate's hooks (device_map) put a forward of their own on the instance, around the stock one.
    return any("forward" in vars(module) and not hasattr(module, "_hf_hook") for module in model.modules())


def _root(function: Any) -> str:
    return str(getattr(function, "__module__", "")).split(".")[0]
