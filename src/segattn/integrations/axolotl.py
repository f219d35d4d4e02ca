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

    def pre_model_load(self, cfg: Any) -> None:
        """Refuse options before anything large is loaded."""
        for option, (refused, instead) in _REFUSED.items():
            given = cfg.get(option)
            if refused(given):
                raise UnsupportedModelError(f"{option}: {given} does not go with segment attention; {instead}")

    def get_training_args(self, cfg: Any) -> dict[str, Any] | None:
        """Let packed rows come without attention mask: transformers then tells documents by their positions."""
        return {"sample_packing_drop_attention_mask": True} if cfg.get("sample_packing") else None

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:  # noqa: ARG002
        """Return the callback that enables the model and checks the rows."""
        return [SegmentAttentionCallback(policy=cfg.get("segment_attention_policy") or "turns")]


_REFUSED: dict[str, tuple[Any, str]] = {
    "context_parallel_size": (lambda size: (size or 1) > 1, "its ring attention takes no mask; use data parallelism"),
    "rl": (bool, "its trainers are not verified; train with supervised answers"),
    "reward_model": (bool, "it has no answers; train with supervised answers"),
    "process_reward_model": (bool, "it has no answers; train with supervised answers"),
    "train_on_inputs": (bool, "labels inside of a segment are known to the tokens before them; set it to false"),
    "batch_flattening": (bool, "it is not verified; use sample_packing: true"),
}
