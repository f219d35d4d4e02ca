"""What a training run is told: three dataclasses, which are also the command line's flags.

`SFTSettings` and `ModelSettings` are TRL's own `SFTConfig` and `ModelConfig`, every flag of theirs included, with
defaults for adapters on segments. `TrainSettings` holds only what TRL has no name for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import IntervalStrategy
from trl import ModelConfig, SFTConfig

from segattn.errors import UnsupportedModelError
from segattn.modeling.masking import ATTENTION_IMPLEMENTATIONS
from segattn.pretrained.environment import cpu_computes_bfloat16
from segattn.training.cutting import TooLong
from segattn.training.mixing import check_share
from segattn.training.opening import SCHEDULES, OpeningSchedule

__all__ = ["ModelSettings", "SFTSettings", "TrainSettings", "check_settings"]


@dataclass
class TrainSettings:
    """What segment attention adds to a fine-tuning run."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "Training data: a .jsonl file, a folder with train.jsonl (or one such sub-folder per task), or a "
            "hub data set owner/name. The Python API may pass samples instead."
        },
    )
    held_out: str | None = field(
        default=None,
        metadata={"help": "Held-out data for the answer loss. Default: the dev split of --data where it has one."},
    )
    held_out_samples: int = field(
        default=200, metadata={"help": "Use at most this many held-out samples, chosen by --seed. 0: none."}
    )
    attention: Literal["segments", "causal"] = field(
        default="segments", metadata={"help": "The mask to train under; it is recorded in the checkpoint."}
    )
    policy: Literal["turns", "prefix", "documents"] = field(
        default="turns",
        metadata={
            "help": "What is one segment: each message (turns), all messages between two answers (prefix), or the "
            "spans that texts name (documents; texts with spans are read so whatever the policy)."
        },
    )
    causal_roles: list[str] | None = field(
        default=None,
        metadata={
            "help": "Read messages of these roles causally, e.g. system; those of the other roles stay segments. The "
            "checkpoint records it."
        },
    )
    max_segment_length: int | None = field(
        default=None,
        metadata={
            "help": "Split segments of more tokens than this into pieces, each a segment, also at inference: the "
            "checkpoint records it. Default: as long as a message is."
        },
    )
    opening_steps: int = field(
        default=0,
        metadata={
            "help": "Open the segments gradually: the keys ahead start with a bias of -8 on their scores, which rises "
            "to 0 over this many steps."
        },
    )
    opening_schedule: OpeningSchedule = field(
        default="linear",
        metadata={
            "help": "How the bias rises: linear; probability (its exponential rises linearly); bottom_up or top_down "
            "(layer by layer, from the first or the last one); learned (a factor for each head, in one process)."
        },
    )
    layers: str | None = field(
        default=None,
        metadata={
            "help": "Segments in these layers only, counted from 0, e.g. 0-14 or 0-3,8; the others run causally, also "
            "at inference: the checkpoint records it. Default: all."
        },
    )
    causal_share: float = field(
        default=0.0,
        metadata={
            "help": "Mixed training: the probability with which a sample is read causally in a step, so that one "
            "checkpoint serves both masks, e.g. 0.5. Held-out data is then scored under both."
        },
    )
    too_long: TooLong = field(
        default="error",
        metadata={
            "help": "Samples over --max_length tokens: refuse to start, leave them out, cut the prompt from the left, "
            "or cut the middle of its longest segment; with a count. Answers are never cut."
        },
    )


@dataclass
class ModelSettings(ModelConfig):
    """TRL's ModelConfig with LoRA on, and its defaults from the paper's setting (r 32, alpha 64)."""

    use_peft: bool = field(default=True, metadata={"help": "Train a LoRA adapter; --no_use_peft trains all weights."})
    lora_r: int = field(default=32, metadata={"help": "LoRA R value."})
    lora_alpha: int = field(default=64, metadata={"help": "LoRA alpha."})
    lora_target_modules: list[str] | None = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "LoRA target modules: names, or all-linear. The paper adapts q_proj and v_proj."},
    )


@dataclass
class SFTSettings(SFTConfig):
    """TRL's SFTConfig with the defaults of a LoRA run: rate 2e-4, no gradient checkpointing, held-out loss."""

    learning_rate: float = field(default=2e-4, metadata={"help": "The initial learning rate for AdamW."})
    # None, not False: transformers warns of this name's retirement as soon as it is set.
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Recompute activations in the backward pass: less memory, more time."}
    )
    output_dir: str | None = field(
        default="runs/train", metadata={"help": "The folder for checkpoints and the tuned model."}
    )
    eval_strategy: IntervalStrategy | str = field(
        default="epoch", metadata={"help": "When to score held-out data, where there is any: no, steps or epoch."}
    )
    eval_on_start: bool = field(default=True, metadata={"help": "Score held-out data before the first step too."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "The order of the rows: group_by_length (batches of like length, mixed), random or sequential.",
            "choices": ["random", "sequential", "group_by_length", "batch_rebalance"],
        },
    )
    bf16: bool | None = field(
        default=None,
        metadata={"help": "Mixed precision in bfloat16. Default: on GPUs, and on CPUs that have it built in."},
    )

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True  # transformers refuses bf16 on a CPU that was not asked for
            if self.bf16 is None:
                self.bf16 = not self.fp16 and cpu_computes_bfloat16()
        super().__post_init__()

    def note(self, facts: Mapping[str, Any]) -> None:
        """Have trackers (TensorBoard, Weights & Biases, ...) record these facts too, as "segattn/NAME"."""
        self._noted = {f"segattn/{name}": value for name, value in facts.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments as transformers does, and what was noted: this is what trackers record of a run."""
        arguments: dict[str, Any] = super().to_dict()
        return {**arguments, **getattr(self, "_noted", {})}


def check_settings(settings: TrainSettings, sft: SFTConfig, model: ModelConfig) -> None:
    """Refuse options that would drop the segment mask or contradict one another, before anything is loaded.

    Raises:
        UnsupportedModelError: names the option and what to use instead.
    """
    refused = {
        f"packing_strategy {sft.packing_strategy}": (
            (sft.packing or bool(sft.eval_packing)) and sft.packing_strategy != "bfd",
            "it splits documents, and with them segments; bfd does not",
        ),
        "use_liger_kernel": (sft.use_liger_kernel, "its kernels are not verified with a segment mask"),
        "assistant_only_loss": (sft.assistant_only_loss, "the labels are already on the answers alone"),
        "completion_only_loss": (sft.completion_only_loss is False, "a loss on the prompt would leak inside segments"),
        "label_smoothing_factor": (sft.label_smoothing_factor > 0, "TRL computes it outside of the answers' loss"),
        "chat_template_path": (sft.chat_template_path is not None, "segments are read from the tokenizer's template"),
    }
    for name, (given, why) in refused.items():
        if given:
            raise UnsupportedModelError(f"--{name} cannot be used here: {why}. Leave it out")
    if (sft.packing or sft.eval_packing) and sft.max_length is None:
        raise UnsupportedModelError("packing fills rows up to max_length, which is None; give --max_length a number")
    if model.attn_implementation not in (None, *ATTENTION_IMPLEMENTATIONS):
        raise UnsupportedModelError(
            f"--attn_implementation {model.attn_implementation} would drop the segment mask; "
            f"expected one of {', '.join(ATTENTION_IMPLEMENTATIONS)}"
        )
    if settings.opening_steps < 0:
        raise UnsupportedModelError(f"opening_steps is {settings.opening_steps}; expected 0 (plain rule) or more")
    if settings.attention == "causal":
        for name in ("causal_roles", "max_segment_length", "opening_steps", "layers", "causal_share"):
            if getattr(settings, name):
                raise UnsupportedModelError(f"{name} is about segments, but attention is causal; leave one of them out")
    check_share(settings.causal_share)
    if settings.opening_schedule not in SCHEDULES:
        raise UnsupportedModelError(
            f"opening_schedule is {settings.opening_schedule!r}; expected one of {', '.join(SCHEDULES)}"
        )
