"""Learning from one's own causal self: the loss between a model without its adapter and the same model with it.

The teacher is the base model under the causal mask, the student the same weights with the adapter and with segments.
Shapes: B rows, L tokens, N answer tokens of a batch, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers.modeling_outputs import CausalLMOutput

from segattn.errors import SegmentError, UnsupportedModelError
from segattn.modeling import causal
from segattn.segments import IGNORED_LABEL
from segattn.training.trainer import SegmentSFTTrainer

__all__ = ["DistillationTrainer", "answer_logits", "kl_divergence", "teacher_logits"]


# Joined rows have position_ids in place of the attention mask.
_INPUTS = ("input_ids", "attention_mask", "position_ids", "segment_ids", "labels")


def answer_logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return the logits from which the answer tokens are predicted; no other position is put onto the vocabulary.

    The model's own head does the work, on the positions before each label alone, so that whatever the model does to
    its logits (scaling, soft caps) is done here too.

    Args:
        model: enabled, adapted or not, and perhaps wrapped by a trainer.
        inputs: input_ids, segment_ids, labels and attention_mask or position_ids, int64 (B, L).

    Returns:
        float32 (N, V), row by row in the order of the tokens.

    Raises:
        UnsupportedModelError: the model has no head that is called once on hidden states (B, L, size).
    """
    labels = inputs["labels"]
    wanted = torch.zeros_like(labels, dtype=torch.bool)
    wanted[:, :-1] = labels[:, 1:] != IGNORED_LABEL

    def select(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG001
        hidden = arguments[0]
        if hidden.shape[:2] != wanted.shape:
            raise _no_head(model, f"its output layer gets {tuple(hidden.shape)} for {tuple(wanted.shape)} tokens")
        return (hidden[wanted][None], *arguments[1:])

    unwrapped = getattr(model, "module", model)  # of a trainer's wrapper for several devices
    head = unwrapped.get_output_embeddings() if hasattr(unwrapped, "get_output_embeddings") else None
    if head is None:
        raise _no_head(model, "it has no output embeddings")
    handle = head.register_forward_pre_hook(select)
    try:
        given = {name: value for name, value in inputs.items() if name != "labels"}
        logits: Tensor = model(**given, use_cache=False).logits
    finally:
        handle.remove()
    if logits.shape[:2] != (1, int(wanted.sum())):
        raise _no_head(model, f"its logits come out as {tuple(logits.shape)}")
    return logits[0].float()


def _no_head(model: Any, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the logits of {type(model).__name__} cannot be had for the answers alone: {why}. Expected a causal language "
        "model whose output layer is called once, on the hidden states of all tokens"
    )


def teacher_logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return what the base model says causally: no adapter, no segments, no dropout, no gradients.

    Args:
        model: enabled and wrapped by PEFT; it is left in the mode it was in.
        inputs: see `answer_logits`.

    Returns:
        float32 (N, V).
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter(), causal(model):
            return answer_logits(model, inputs)
    finally:
        model.train(was_training)


def kl_divergence(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(teacher || student) of each token, in nats, times the squared temperature.

    Args:
        student_NV: logits, float32 (N, V).
        teacher_NV: as many.
        temperature: divides both; its square keeps the size of the gradients (Hinton et al., arXiv 1503.02531).

    Returns:
        float32 (N,).
    """
    student, teacher = ((logits / temperature).log_softmax(-1) for logits in (student_NV, teacher_NV))
    return kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * temperature**2


class DistillationTrainer(SegmentSFTTrainer):
    """A `SegmentSFTTrainer` whose loss is the mean KL divergence per answer token; the labels only say where.

    `eval_loss` is the mean over all answer tokens of the held-out rows, at the same temperature.

    Args:
        temperature: of both distributions.
        options: SegmentSFTTrainer's own; a `peft_config` among them, for the teacher is the model without its adapter.

    Raises:
        UnsupportedModelError: no adapter, so that there would be no teacher.
    """

    def __init__(self, *, temperature: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.temperature = temperature
        self.run_settings["temperature"] = temperature
        if not hasattr(self.model, "disable_adapter"):
            raise UnsupportedModelError(
                f"{type(self.model).__name__} has no adapter, so that there is no teacher beside it; pass peft_config"
            )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss of a batch that must hold segment ids and labels."""
        missing = [name for name in ("segment_ids", "labels") if inputs.get(name) is None]
        if missing:
            raise SegmentError(
                f"the batch holds {sorted(inputs)} but no {' and '.join(missing)}; expected a data set with these "
                "columns and a SegmentCollator"
            )
        given = {name: inputs[name] for name in _INPUTS if inputs.get(name) is not None}
        # The teacher first: its pass holds nothing for the backward one.
        teacher = teacher_logits(self.accelerator.unwrap_model(model, keep_fp32_wrapper=True), given)
        student = answer_logits(model, given)
        total = kl_divergence(student, teacher, self.temperature).sum()
        if num_items_in_batch is None:
            loss = total / max(len(student), 1)
        else:
            # Those of all accumulated batches on all devices, whose gradients are averaged.
            devices = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = total * devices / num_items_in_batch
        return (loss, CausalLMOutput(loss=loss, logits=student)) if return_outputs else loss
