"""Segments in Axolotl, as a plugin: `plugins: [segattn.integrations.axolotl.SegmentAttentionPlugin]`."""

from typing import Any, Literal

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from segattn.errors import UnsupportedModelError
from segattn.integrations.callback import SegmentAttentionCallback

__all__ = ["SegmentAttentionArgs", "SegmentAttentionPlugin"]


class SegmentAttentionArgs(BaseModel):
    """What the plugin adds to Axolotl's config.

    Attributes:
        segment_attention_policy: which messages are segments, see `segattn.Segmenter`.
    """

    segment_attention_policy: Literal["turns", "prefix", "causal"] = "turns"


class SegmentAttentionPlugin(BasePlugin):
    """Trains Axolotl's model under the segment mask.

    Raises:
        UnsupportedModelError: an option of Axolotl's under which the mask would be lost, or that trains on something
            other than chats with answers.
    """

    def get_input_args(self) -> str:
        """Return the name of the config's additions."""
        return f"{__name__}.{SegmentAttentionArgs.__name__}"

    def register(self, cfg: Any) -> None:
        """Keep Axolotl from replacing attention functions and layers unasked, as it does for packing and for LoRA."""
        for option in _TURNED_ON_UNASKED:
            if cfg.get(option) is None:
                cfg[option] = False

    def pre_model_load(self, cfg: Any) -> None:
        """Refuse options before anything large is loaded."""
        for option, (why, accepted) in _ACCEPTED.items():
            given = cfg.get(option)
            if given and given not in accepted:
                raise UnsupportedModelError(f"{option}: {given} does not go with segment attention, {why}")

    def get_training_args(self, cfg: Any) -> dict[str, Any] | None:
        """Let packed rows come without attention mask: transformers then tells documents by their positions."""
        return {"sample_packing_drop_attention_mask": True} if cfg.get("sample_packing") else None

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:  # noqa: ARG002
        """Return the callback that enables the model and checks the rows."""
        return [SegmentAttentionCallback(policy=cfg.get("segment_attention_policy") or "turns")]


_TURNED_ON_UNASKED = ("sdpa_varlen", "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")

_REPLACES = "it replaces what computes attention; leave it out"
_NOT_VERIFIED = "it is not verified with it; leave it out"

# Option -> why it is refused, and the values besides false and none that are not.
_ACCEPTED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "attn_implementation": ("it would drop the mask; use sdpa or eager", ("sdpa", "eager", "flex_attention")),
    "context_parallel_size": ("its ring attention takes no mask; use data parallelism", (1,)),
    "sdpa_varlen": (_REPLACES, ()),
    "train_on_inputs": ("labels inside of a segment are known to the tokens before them; set it to false", ()),
    "rl": ("its trainers are not verified; train on answers", ()),
    "reward_model": ("its trainer is not verified; train on answers", ()),
    "process_reward_model": ("its trainer is not verified; train on answers", ()),
    "streaming": ("its rows cannot be checked before training; set it to false", ()),
    "pretraining_dataset": ("it holds no answers; use datasets", ()),
    "batch_flattening": (f"{_NOT_VERIFIED}, and use sample_packing", ()),
    "cut_cross_entropy": (_NOT_VERIFIED, ()),
    "tiled_mlp": (_NOT_VERIFIED, ()),
    **{
        f"liger_{kernel}": (_NOT_VERIFIED, ())
        for kernel in (
            "rope",
            "rms_norm",
            "layer_norm",
            "swiglu",
            "glu_activation",
            "cross_entropy",
            "fused_linear_cross_entropy",
        )
    },
}
