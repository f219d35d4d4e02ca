"""Tiny random models of every verified family, and the masks that a stock model must be given by hand."""

import torch
import transformers

from oracle import loop_mask

WINDOW = 4
VOCABULARY = 96

# name -> (config class, model class, options). Windows are shorter than the segments of the tests.
FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen2-window": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": None}),
    "mistral-window": ("MistralConfig", "MistralForCausalLM", {"sliding_window": WINDOW}),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", {}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {"sliding_window": WINDOW}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {"sliding_window": WINDOW}),
}

# Gemma 2 caps its scores, which SDPA cannot; transformers runs it eagerly.
CASES = [(name, kind) for name in FAMILIES for kind in ("sdpa", "eager") if (name, kind) != ("gemma2", "sdpa")]


def build(name="llama", implementation="sdpa", seed=0, **options):
    """A three-layer model with random weights, in eval mode."""
    config_name, model_name, family = FAMILIES[name]
    size = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
    }
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    config = getattr(transformers, config_name)(
        **{**size, **special, **family, **options}, attn_implementation=implementation
    )
    torch.manual_seed(seed)
    model = getattr(transformers, model_name)(config).eval()
    # Random initial weights give nearly flat attention: sharpen it, so that a wrong mask shows.
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "q_proj" in parameter_name or "k_proj" in parameter_name:
                parameter.mul_(8)
    return model


def tokens(batch=2, length=14, seed=0):
    """Random token ids without special tokens."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def hand_mask(model, rows, implementation, reals=None, queries=None):
    """What a stock model takes as attention_mask to follow the segments: 4D, one per kind of layer."""

    def shaped(window):
        mask = loop_mask(rows, reals=reals, window=window, queries=queries)
        # A padding row that sees nothing is NaN in some kernels; what it computes is never compared.
        mask |= ~mask.any(-1, keepdim=True)
        if implementation == "sdpa":
            return mask
        return torch.where(mask, 0.0, torch.finfo(torch.float32).min)

    config = model.config
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    if kinds and config.model_type != "mistral":
        if config.model_type in ("llama", "gemma"):
            return shaped(None)
        return {kind: shaped(window if kind == "sliding_attention" else None) for kind in kinds}
    return shaped(window)
