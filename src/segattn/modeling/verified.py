"""Which model classes follow segments: found by running every family of transformers (docs/families.md)."""

__all__ = ["EXACT", "PARTIAL", "REFUSED", "TRANSFORMERS"]

TRANSFORMERS = ("5.16.0", "5.23.0")
"""The oldest and the newest release that the table was made with."""

EXACT = frozenset(
    {
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "GemmaForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "SmolLM3ForCausalLM",
    }
)
"""Every layer follows the rule."""

PARTIAL: frozenset[str] = frozenset()
"""Attention layers follow the rule, recurrent layers cannot."""

REFUSED: dict[str, str] = {}
"""Class -> why it cannot honour segments."""
