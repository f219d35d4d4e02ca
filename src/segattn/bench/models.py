"""Models to measure: a real one, or one random layer of a large model's shape; in variants that share their weights."""

import copy
from dataclasses import dataclass
from typing import Any

import torch

import segattn
from segattn.bench.errors import BenchError

__all__ = ["ModelShape", "check_length", "load_model", "random_ids", "shape_of", "single_layer", "variants"]


@dataclass(frozen=True)
class ModelShape:
    """What the cost of a decoder follows from.

    Attributes:
        linear: weights of all linear layers but the one that gives logits, which a prefill runs for one token only.
    """

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    linear: int


def load_model(name: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a causal language model: "smollm2", a folder or a hub id.

    Raises:
        BenchError: the model cannot be loaded.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from segattn.pretrained import resolve_model

    path = resolve_model(name)
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    except (OSError, ValueError) as error:
        raise BenchError(
            f"{name} cannot be loaded ({error}); expected smollm2, a folder of transformers files, or a hub id that "
            "can be reached (`segattn doctor` tells)"
        ) from error
    return model.to(device).eval()


def single_layer(dtype: torch.dtype, device: torch.device, *, tiny: bool = False) -> Any:
    """Return one random layer of Llama 3.2 1B's shape, with a small vocabulary.

    Args:
        dtype: of the weights.
        device: of the weights.
        tiny: a layer of 64 numbers, for tests.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    wide = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8}
    small = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        **(small if tiny else wide), num_hidden_layers=1, vocab_size=1000, max_position_embeddings=131072, dtype=dtype
    )
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=dtype).eval()


def variants(model: Any) -> dict[str, Any]:
    """Return the stock model and two enabled copies with the same weights in memory.

    Returns:
        "causal": the model as it came; "segments": with backend "auto", what a user gets; "dense": under a mask.
    """
    return {
        "causal": model,
        "segments": segattn.enable(_with_shared_weights(model)),
        "dense": segattn.enable(_with_shared_weights(model), backend="dense"),
    }


def _with_shared_weights(model: Any) -> Any:
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def shape_of(model: Any) -> ModelShape:
    """Read a model's shape from its config and its layers."""
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    output = model.get_output_embeddings()
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not output
    )
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    return ModelShape(int(config.num_hidden_layers), heads, kv_heads, int(head_size), linear)


def check_length(model: Any, length: int) -> None:
    """Refuse more tokens than the model was made for.

    Raises:
        BenchError: names both numbers.
    """
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and length > most:
        raise BenchError(f"the length is {length}, but the model holds at most {most} tokens; take that or less")


def random_ids(model: Any, length: int) -> torch.Tensor:
    """Return random token ids (1, length) on the model's device.

    Raises:
        BenchError: more tokens than the model was made for.
    """
    check_length(model, length)
    generator = torch.Generator().manual_seed(0)
    size = model.config.get_text_config().vocab_size
    return torch.randint(0, size, (1, length), generator=generator).to(model.device)
