"""Which options of `generate` a prefix cache cannot serve."""

from typing import Any

from torch import Tensor

from segattn.errors import UnsupportedModelError
from segattn.modeling.generation import generation_option

__all__ = ["check_options", "copies_of"]

_TENSORS = frozenset({"inputs", "input_ids", "attention_mask", "segment_ids"})

# Option -> why keys of an earlier request would not be those of this one, or would be handed out wrongly.
_REFUSED = {
    "past_key_values": "the prompt's keys come from the prefix cache; leave past_key_values out",
    "inputs_embeds": "prefixes are known by their token ids",
    "position_ids": "prefixes are kept for the positions 0, 1, 2, ... of a row",
    "cache_implementation": "a prefix is put into a dynamic cache",
    "assistant_model": "drafts beside a filled cache were not compared",
    "prompt_lookup_num_tokens": "drafts beside a filled cache were not compared",
    "assistant_early_exit": "drafts beside a filled cache were not compared",
    "token_healing": "it changes the prompt",
    "use_mtp": "its layers beside the model have keys of their own",
    "speculation_type": "its draft has keys of its own",
    "output_attentions": "those of the reused tokens are not computed",
    "output_hidden_states": "those of the reused tokens are not computed",
    "adapter_names": "the rows would be run with different adapters",
    "custom_generate": "a loop of one's own beside a filled cache was not compared",
}


def check_options(model: Any, given: dict[str, Any]) -> None:
    """Refuse options of `generate` that a prefix cache cannot serve exactly.

    Raises:
        UnsupportedModelError: names the option and why.
    """
    for name, why in _REFUSED.items():
        value = generation_option(model, given, name)
        if value is not None and value is not False:
            raise UnsupportedModelError(f"generate({name}=...) with prefix_cache: {why}. Leave one of the two out")
    if generation_option(model, given, "use_cache") is False:
        raise UnsupportedModelError("generate(use_cache=False) with prefix_cache; leave one of the two out")
    tensors = [name for name, value in given.items() if isinstance(value, Tensor) and name not in _TENSORS]
    others = [name for name in tensors if not hasattr(model.generation_config, name)]
    if others:
        raise UnsupportedModelError(
            f"generate({others[0]}=...) with prefix_cache: keys may depend on it, and prefixes are known by their "
            "token ids alone. Leave one of the two out"
        )


def copies_of(model: Any, given: dict[str, Any]) -> int:
    """Return how many rows of the cache each prompt gets: its beams, or its sampled sequences."""
    return max(int(generation_option(model, given, name) or 1) for name in ("num_beams", "num_return_sequences"))
