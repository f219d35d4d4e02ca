"""Which models may follow segments, and where the Hugging Face model sits inside its wrappers."""

from typing import Any

from torch import nn

from segattn.errors import UnsupportedModelError

__all__ = ["VERIFIED_FAMILIES", "backbone_of", "check_supported", "pretrained_model_of"]

# `config.model_type` of the families whose logits, gradients and generated tokens the test suite compares
# with hand-built masks.
VERIFIED_FAMILIES = frozenset({"llama", "qwen2", "qwen3", "mistral", "smollm3", "gemma", "gemma2", "gemma3_text"})

# Attention implementations whose masks pass through transformers' mask interface as dense tensors.
ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager")


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
    decoder: Any = getattr(model, "get_decoder", lambda: model)()
    return decoder if isinstance(decoder, nn.Module) else model


def check_supported(model: Any) -> str:
    """Return the attention implementation that segments will run on.

    Raises:
        UnsupportedModelError: an unverified family, or a backend that drops the mask.
    """
    config = model.config
    family = config.get_text_config().model_type
    if family not in VERIFIED_FAMILIES:
        raise UnsupportedModelError(
            f"model family {family!r} ({type(model).__name__}) is not verified to honour segments; "
            f"verified families: {', '.join(sorted(VERIFIED_FAMILIES))}"
        )
    implementation = config.get_text_config()._attn_implementation
    if implementation not in ATTENTION_IMPLEMENTATIONS:
        raise UnsupportedModelError(
            f"attention implementation {implementation!r} would drop or cannot take the segment mask; load the model "
            "with attn_implementation='sdpa' (or 'eager'), or call model.set_attn_implementation('sdpa') first"
        )
    return str(implementation)
