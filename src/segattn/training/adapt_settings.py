"""What a conversion without labels is told: one dataclass, whose fields are the flags of `segattn adapt`."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch

from segattn.data import DataError
from segattn.pretrained.environment import cpu_computes_bfloat16

__all__ = ["BUILTIN_PROMPTS", "AdaptSettings"]

BUILTIN_PROMPTS = "builtin"
"""The value of `prompts` that stands for `segattn.training.plain_prompts`."""

_SMALLEST = {
    "steps": 1, "opening_steps": 0, "warmup_steps": 0, "lora_r": 1, "batch_size": 1, "max_new_tokens": 1,
    "max_length": 2, "held_out": 0, "save_steps": 1, "eval_steps": 0, "answer_batch_size": 1, "shuffle": 0,
}  # fmt: skip


@dataclass(frozen=True)
class AdaptSettings:
    """One conversion of a causal chat model into a segment model, by its own causal answers.

    Attributes:
        model: a causal chat model: a folder, a hub id, or smollm2.
        prompts: a .jsonl file, a folder of them, or a hub data set (streamed). Rows of every format of `segattn
            train`, or prompts without an answer. builtin: a few thousand plain English prompts.
        output_dir: the folder of the adapter, the answers and adapt_result.json.
        answers: learn on answers that the causal model writes itself, or on those that the rows give.
        steps: optimizer steps.
        opening_steps: open the segments gradually over this many steps; 0: at once.
        learning_rate: at its peak; it falls linearly to 0.
        warmup_steps: steps until the peak.
        lora_r: the rank of the adapter; alpha is twice as much.
        lora_targets: the adapted modules: all-linear, or names separated by commas.
        adapter_dtype: what the finished adapter is rounded to and saved as; bfloat16 halves its size.
        batch_size: prompts a step.
        max_new_tokens: the most tokens of an answer; a longer one is learned up to there.
        answer_temperature: at which the teacher answers; 0: its likeliest token each time.
        answer_batch_size: how many answers are generated at once.
        temperature: softens both distributions in the loss.
        max_length: the most tokens of a prompt and its answer. Nothing is ever cut.
        too_long: longer ones: refuse, or leave them out and say how many.
        shuffle: prompts are mixed within a buffer of this many; 0: taken in their order.
        held_out: prompts that are kept apart and measured: from a dev split, or the first ones. 0: none.
        eval_steps: measure the held-out loss every so many steps; 0: a quarter of --steps.
        save_steps: save a checkpoint every so many steps.
        compare_sft: also tune on the same answers with the plain loss of SFT, and measure it.
        policy: what is one segment: a message, or all between two answers.
        dtype: of the frozen weights. auto: bfloat16, unless the processor only emulates it.
        report_to: where the trainer logs: none, tensorboard, wandb, ...
        seed: of the order of prompts, the adapter's first weights and sampled answers.

    Raises:
        DataError: a value out of range, or two that contradict one another.
    """

    model: str = "smollm2"
    prompts: str = BUILTIN_PROMPTS
    output_dir: str = "runs/adapted"
    answers: Literal["teacher", "given"] = "teacher"
    steps: int = 300
    opening_steps: int = 0
    learning_rate: float = 5e-4
    warmup_steps: int = 10
    lora_r: int = 16
    lora_targets: str = "all-linear"
    adapter_dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = 8
    max_new_tokens: int = 96
    answer_temperature: float = 0.0
    answer_batch_size: int = 16
    temperature: float = 1.0
    max_length: int = 1024
    too_long: Literal["error", "drop"] = "error"
    shuffle: int = 2000
    held_out: int = 64
    eval_steps: int = 0
    save_steps: int = 100
    compare_sft: bool = False
    policy: Literal["turns", "prefix"] = "turns"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    report_to: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in _SMALLEST.items():
            if getattr(self, name) < least:
                raise DataError(f"{name} is {getattr(self, name)}; expected at least {least}")
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise DataError(f"{name} is {getattr(self, name)}; expected a positive number")
        if not self.answer_temperature >= 0:
            raise DataError(f"answer_temperature is {self.answer_temperature}; expected 0 (greedy) or more")
        choices = {"answers": ("teacher", "given"), "policy": ("turns", "prefix"), "too_long": ("error", "drop"),
                   "dtype": ("auto", "float32", "bfloat16"), "adapter_dtype": ("float32", "bfloat16")}  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise DataError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        if self.opening_steps > self.steps:
            raise DataError(
                f"opening_steps is {self.opening_steps} and steps {self.steps}; expected the segments to be open "
                "before training ends"
            )
        if self.max_new_tokens >= self.max_length:
            raise DataError(
                f"max_new_tokens is {self.max_new_tokens} and max_length {self.max_length}; expected room for a prompt"
            )

    @property
    def weights_dtype(self) -> str:
        """The dtype that "auto" stands for on this machine."""
        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if torch.accelerator.is_available() or cpu_computes_bfloat16() else "float32"

    @property
    def target_modules(self) -> str | list[str]:
        """`lora_targets` as PEFT takes them."""
        return "all-linear" if self.lora_targets == "all-linear" else self.lora_targets.replace(" ", "").split(",")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        return asdict(self)

    def differences(self, other: dict[str, Any], ignored: tuple[str, ...] = ()) -> list[str]:
        """Name the settings of another run that differ from these."""
        return [
            f"{one.name} {other.get(one.name)!r} -> {getattr(self, one.name)!r}"
            for one in fields(self)
            if one.name not in ignored and other.get(one.name) != getattr(self, one.name)
        ]
