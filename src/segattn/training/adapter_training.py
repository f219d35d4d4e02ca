"""One adapter, tuned on answered lessons by the trainer that is given, saved, and gone on with."""

import sys
from pathlib import Path
from typing import Any

import torch

from segattn.training.adapt_settings import AdaptSettings
from segattn.training.collator import SegmentCollator
from segattn.training.distillation import DistillationTrainer
from segattn.training.lessons import Lessons, rows_of
from segattn.training.progress import shown_progress
from segattn.training.run import _finish
from segattn.training.running import run_training
from segattn.training.settings import SFTSettings
from segattn.training.trainer import SegmentSFTTrainer

__all__ = ["train_adapter"]


def train_adapter(
    trainer_class: type[SegmentSFTTrainer],
    settings: AdaptSettings,
    folder: Path,
    network: Any,
    tokenizer: Any,
    lessons: Lessons,
    resume: bool,
) -> tuple[SegmentSFTTrainer, bool]:
    """Tune an adapter on the lessons and save it.

    Args:
        trainer_class: `DistillationTrainer`, or `SegmentSFTTrainer` for the plain loss on the same rows.
        settings: of the run.
        folder: of the adapter and its checkpoints.
        network: the base model, enabled.
        tokenizer: saved beside the adapter.
        lessons: answered.
        resume: go on with the last checkpoint in `folder`, where there is one.

    Returns:
        (the trainer, with the tuned model in eval mode; whether Ctrl-C ended it early).
    """
    from peft import LoraConfig
    from transformers import set_seed

    arguments = _arguments(settings, folder, held_out=bool(lessons.held_out))
    arguments.note(settings.to_dict())
    extra: dict[str, Any] = (
        {"temperature": settings.temperature} if issubclass(trainer_class, DistillationTrainer) else {}
    )
    set_seed(settings.seed)  # the adapter's first weights, whatever was drawn before
    trainer = trainer_class(
        opening_steps=settings.opening_steps,
        model=network,
        args=arguments,
        data_collator=SegmentCollator(tokenizer.pad_token_id),
        train_dataset=rows_of(lessons.train),
        eval_dataset=rows_of(lessons.held_out) if lessons.held_out else None,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=settings.lora_r,
            lora_alpha=2 * settings.lora_r,
            lora_dropout=0.0,
            target_modules=settings.target_modules,
            task_type="CAUSAL_LM",
        ),
        **extra,
    )
    with shown_progress(trainer):
        interrupted = run_training(trainer, "auto" if resume else None)
    if settings.adapter_dtype == "bfloat16":
        _cast_adapter(trainer.model, torch.bfloat16)
    _finish(trainer, arguments)
    # PEFT computes in float32, also with weights that were saved in less: what is measured is what will be loaded.
    _cast_adapter(trainer.model, torch.float32)
    return trainer, interrupted


def _arguments(settings: AdaptSettings, folder: Path, *, held_out: bool) -> SFTSettings:
    arguments = SFTSettings(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=min(settings.warmup_steps, settings.steps - 1),
        lr_scheduler_type="linear",
        logging_steps=max(1, settings.steps // 30),
        eval_on_start=held_out,
        eval_strategy="steps" if held_out else "no",
        eval_steps=settings.eval_steps or max(1, settings.steps // 4),
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=1,
        disable_tqdm=not sys.stderr.isatty(),
        report_to=settings.report_to,
        seed=settings.seed,
        bf16=False,  # the weights have their dtype already; autocast would add copies
        max_length=None,
    )
    # With several devices in one process, replicas of the model would run parts of a batch: the teacher among them.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _cast_adapter(model: Any, dtype: torch.dtype) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
