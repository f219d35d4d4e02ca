"""The causal chat model that is converted: loaded, enabled, and refused where it cannot be a teacher."""

from pathlib import Path
from typing import Any

import torch

from segattn.data import DataError
from segattn.errors import SegmentAttentionError, UnsupportedModelError
from segattn.modeling import enable
from segattn.modeling.segmentation_entry import read_segmentation
from segattn.training.adapt_settings import AdaptSettings

__all__ = ["load_base"]


def load_base(settings: AdaptSettings) -> tuple[Any, Any, Any]:
    """Load the model that `settings` name.

    Returns:
        (the model, enabled, on the accelerator where there is one; its tokenizer, with a pad token; its segmenter).

    Raises:
        UnsupportedModelError: tuned with segments already, an adapter, a class that cannot follow segments, or nothing
            that can be loaded.
        TemplateError: no chat template, or one that cannot be read.
        DataError: max_length is more than the model holds.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from segattn.pretrained import resolve_model
    from segattn.templates import Segmenter

    path = resolve_model(settings.model)
    recorded = read_segmentation(path)
    policy = None if recorded is None else (recorded["segmenter"] or {}).get("policy", "unknown")
    if policy not in (None, "causal"):
        raise UnsupportedModelError(
            f"{settings.model} was tuned with segments already (policy {policy}); run causally it is no teacher. "
            "Expected a causal chat model; to go on with an adaptation, use --resume"
        )
    if (Path(path) / "adapter_config.json").is_file():
        raise UnsupportedModelError(
            f"{settings.model} is an adapter; expected a full model. Merge it first (peft's merge_and_unload)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        segmenter = Segmenter.from_tokenizer(tokenizer, policy=settings.policy)
        network = AutoModelForCausalLM.from_pretrained(path, dtype=settings.weights_dtype)
    except SegmentAttentionError:
        raise  # some of them are ValueErrors
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(
            f"{settings.model} cannot be loaded ({error}); expected a folder of a causal language model with its "
            "tokenizer, or a hub id that can be reached (`segattn doctor` tells)"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    context = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if context and settings.max_length > context:
        raise DataError(f"max_length is {settings.max_length}, and {settings.model} holds {context} tokens; lower it")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return enable(network.to(device), segmenter), tokenizer, segmenter
