"""Load a model for answering, and settle how it attends: segment-tuned checkpoints by segments, others causally."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from segattn.errors import SegmentAttentionError, TemplateError

__all__ = [
    "CHAT_MODEL_HELP",
    "DTYPE_HELP",
    "AnswerError",
    "Attention",
    "ChatModel",
    "Dtype",
    "load_chat_model",
    "load_segmenter",
]

Attention = Literal["auto", "segments", "causal"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


CHAT_MODEL_HELP = (
    "A folder (model or adapter), a hub id, smollm2, or smollm2-segments: SmolLM2-135M with the adapter that comes "
    "with the package, which reads with segments."
)
DTYPE_HELP = "auto: as the checkpoint was saved, but float32 where the processor would only emulate bfloat16."


class AnswerError(SegmentAttentionError, ValueError):
    """A request that a model cannot answer as it was put."""


@dataclass
class ChatModel:
    """A loaded model with its tokenizer and its way of attending.

    `segmenter` is None for a model that runs causally as transformers runs it.
    """

    name: str
    model: Any
    tokenizer: Any
    segmenter: Any
    attention: Literal["segments", "causal"]

    def encode(self, messages: list[dict[str, str]]) -> Any:
        """Turn a conversation that awaits an answer into a batch of one row.

        Returns:
            A BatchEncoding with input_ids, attention_mask and segment_ids, all int64 (1, length), on the model's
            device; segment_ids are all -1 where the model runs causally.

        Raises:
            TemplateError: the tokenizer has no chat template, or it refuses this conversation.
        """
        encoder = self.segmenter or self.tokenizer
        try:
            batch = encoder.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        except SegmentAttentionError:
            raise
        except Exception as error:  # templates raise whatever they like
            raise TemplateError(
                f"the chat template of {self.name} cannot render this conversation ({error}); expected roles and an "
                "order that the template knows, and a tokenizer that has one"
            ) from error
        if self.attention == "causal" or "segment_ids" not in batch:
            batch["segment_ids"] = batch["input_ids"].new_full(batch["input_ids"].shape, -1)
        return batch.to(self.model.device)

    def generate(self, batch: Any, **options: Any) -> Any:
        """Run the model's own `generate` under this model's way of attending; returns int64 (1, length)."""
        import segattn

        inputs = dict(batch)
        enabled = segattn.is_enabled(self.model)
        if not enabled:
            inputs.pop("segment_ids")
        context: AbstractContextManager[Any] = nullcontext()
        if enabled and self.attention == "causal":
            context = segattn.causal(self.model)
        with context:
            return self.model.generate(**inputs, **options)

    @property
    def context_length(self) -> int | None:
        """The most tokens the model can hold, None if its config does not say."""
        length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(length) if length else None


def load_chat_model(
    name: str, attention: Attention, dtype: Dtype, device: str, tell: Callable[[str], None]
) -> ChatModel:
    """Load a base model, a merged model or an adapter.

    Args:
        name: a folder, a hub id, or "smollm2".
        attention: "auto" takes segments where the checkpoint records a segmentation, and causal otherwise.
        dtype: "auto" takes the checkpoint's own, or float32 where the processor would only emulate bfloat16.
        device: "auto", or what torch calls it.
        tell: receives a line where the choice deserves one.

    Raises:
        SegmentAttentionError: the model cannot be loaded, or cannot honour segments.
    """
    import torch
    from transformers.utils import logging

    import segattn
    from segattn.modeling.attention_choice import choose_attention
    from segattn.pretrained import resolve_model
    from segattn.pretrained.environment import cpu_computes_bfloat16

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    path = resolve_model(name)
    target = _device(device)
    entry = _recorded(path)
    if entry is None:
        model, tokenizer = _load_plain(name, path, dtype)
    else:
        model, tokenizer = segattn.from_pretrained(path, dtype=dtype)
    choice = choose_attention(name, attention, entry, tokenizer)
    if choice.note is not None:
        tell(choice.note)
    if choice.attention == "segments" and not choice.recorded:
        model = segattn.enable(model, choice.segmenter)
    if dtype == "auto" and target.type == "cpu" and model.dtype == torch.bfloat16 and not cpu_computes_bfloat16():
        model = model.float()
    model = model.to(target).eval()
    return ChatModel(name, model, tokenizer, choice.segmenter, choice.attention)


def _load_plain(name: str, path: str, dtype: Dtype) -> tuple[Any, Any]:
    """Load a checkpoint that records no segmentation; returns (model, tokenizer)."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(path)
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype), tokenizer
    except (OSError, ValueError) as error:
        raise AnswerError(
            f"{name} cannot be loaded ({error}); expected a folder of transformers or PEFT files, or a hub id "
            "that can be reached (`segattn doctor` tells)"
        ) from error


def load_tokenizer(path: str) -> Any:
    """Load the tokenizer of a checkpoint; an adapter that has none takes its base model's."""
    from transformers import AutoTokenizer

    from segattn.modeling.checkpoint import adapter_base
    from segattn.modeling.segmentation_entry import checkpoint_file

    source = path
    if checkpoint_file(path, "tokenizer_config.json") is None:
        source = adapter_base(path) or path
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise AnswerError(
            f"{path} has no tokenizer that can be loaded ({error}); expected tokenizer.json beside the model, or a "
            "hub id that can be reached (`segattn doctor` tells)"
        ) from error


def load_segmenter(name: str, policy: str | None) -> tuple[Any, Any]:
    """Load what segments a model's chats, without the model; returns (segmenter, tokenizer).

    Args:
        name: a folder, a hub id, or "smollm2".
        policy: None takes the checkpoint's own segmenter where it records one, and "turns" otherwise.
    """
    from segattn import Segmenter
    from segattn.pretrained import resolve_model

    path = resolve_model(name)
    recorded = _recorded(path)
    tokenizer = load_tokenizer(path)
    if policy is None and recorded is not None and recorded["segmenter"] is not None:
        return Segmenter.from_dict(recorded["segmenter"], tokenizer=tokenizer), tokenizer
    return Segmenter.from_tokenizer(tokenizer, policy=policy or "turns"), tokenizer


def _recorded(path: str) -> dict[str, Any] | None:
    from segattn.modeling.segmentation_entry import read_segmentation

    return read_segmentation(path)


def _device(wanted: str) -> Any:
    import torch

    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise AnswerError(f"device {wanted!r} cannot be used ({first_line}); expected auto, cpu, cuda or mps") from None
    return device
