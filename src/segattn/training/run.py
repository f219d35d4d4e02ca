"""One fine-tuning run, from data to a saved adapter."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import IntervalStrategy, TrainerCallback

from segattn.data import DataError, Sample, SpanText, load_training_samples
from segattn.errors import UnsupportedModelError
from segattn.modeling import enable, save_pretrained
from segattn.modeling.segmentation_entry import read_segmentation
from segattn.training.collator import SegmentCollator
from segattn.training.dataset import EncodedData, encode_dataset, held_out_samples
from segattn.training.disk_space import told_if_full
from segattn.training.flags import changed_flags
from segattn.training.parallelism import check_parallelism
from segattn.training.progress import shown_progress
from segattn.training.report import report_run
from segattn.training.result import CurvePoint, TrainResult, curve_of, speed_of, write_result
from segattn.training.running import run_training
from segattn.training.settings import ModelSettings, SFTSettings, TrainSettings, check_settings
from segattn.training.trackers import check_trackers
from segattn.training.trainer import SegmentSFTTrainer

__all__ = ["CurvePoint", "TrainResult", "train"]

logger = logging.getLogger(__name__)


def train(
    settings: TrainSettings,
    sft: SFTSettings,
    model: ModelSettings,
    *,
    samples: Sequence[Sample | SpanText] | None = None,
    held_out: Sequence[Sample | SpanText] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Fine-tune a model on chats or texts with spans, under segments or causally, and save it with its segmentation.

    The seed in `sft` decides the order of the samples, the adapter's first weights and the dropout: two runs that
    differ in `settings.attention` alone see the same samples in the same order.

    Args:
        settings: data, mask and opening.
        sft: TRL's training arguments: output_dir, max_steps, per_device_train_batch_size, learning_rate, seed, and
            when to score held-out data: eval_on_start=True, eval_strategy="steps", eval_steps=25.
        model: TRL's model arguments: model_name_or_path, dtype, LoRA.
        samples: the training data, in place of `settings.data`.
        held_out: the held-out data, in place of `settings.held_out`.
        callbacks: of transformers, called during training beside its own.

    Returns:
        The result, which is also written to output_dir as training_result.json.

    Raises:
        DataError, SegmentError, LabelLeakError, TemplateError: the data or the template cannot be used.
        UnsupportedModelError: a model or option that cannot honour segments.
        CheckpointError, DiskFullError, NotFiniteError: see `segattn.training.resumable.ResumableTrainer`.
    """
    check_settings(settings, sft, model)
    check_trackers(sft.report_to)
    check_parallelism(sft)
    flags = changed_flags(settings, sft, model)  # before the run settles what was left open
    if isinstance(sft, SFTSettings):
        sft.note(asdict(settings))
    clock = _Clock()
    train_samples, held_out_list = _load_data(settings, sft, samples, held_out)
    chats = _holds_chats(train_samples, settings)
    network, tokenizer, segmenter = _load_model(settings, sft, model, chats=chats)
    clock.lap("load")
    data = _encode(train_samples, "training", settings, sft, segmenter, tokenizer)
    held_out_set = _held_out_dataset(held_out_list, settings, sft, segmenter, tokenizer)
    clock.lap("encode")
    trainer = _trainer(settings, sft, model, network, tokenizer, data.dataset, held_out_set)
    for callback in callbacks:
        trainer.add_callback(callback)
    with shown_progress(trainer):
        interrupted = run_training(trainer, sft.resume_from_checkpoint)
    clock.lap("train")
    tuned = _finish(trainer, sft)
    clock.lap("save")
    result = TrainResult(
        output_dir=str(sft.output_dir),
        steps=trainer.state.global_step,
        interrupted=interrupted,
        curve=curve_of(trainer.state.log_history),
        train_losses=[(log["step"], log["loss"]) for log in trainer.state.log_history if "loss" in log],
        samples=len(data.dataset),
        dropped=data.dropped,
        cut=data.cut,
        removed_tokens=data.removed_tokens,
        held_out=len(held_out_list),
        rows=len(trainer.train_dataset),
        tokens=data.tokens,
        answer_tokens=data.answer_tokens,
        speed=speed_of(trainer.state.log_history),
        seconds=clock.laps,
        model=tuned,
        segmenter=segmenter,
    )
    if trainer.is_world_process_zero():
        report_run(write_result(result, settings, sft, model, Path(sft.output_dir or "."), flags))
    trainer.accelerator.wait_for_everyone()  # a launcher ends all processes when one has ended badly
    return result


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now


def _load_data(
    settings: TrainSettings,
    sft: SFTSettings,
    samples: Sequence[Sample | SpanText] | None,
    held_out: Sequence[Sample | SpanText] | None,
) -> tuple[list[Sample | SpanText], list[Sample | SpanText]]:
    if samples is None and settings.data is None:
        raise UnsupportedModelError("there is no training data; pass --data (a file, a folder or a hub data set)")
    train_samples = list(samples) if samples is not None else load_training_samples(settings.data or "", "train")
    if held_out is not None:
        return train_samples, list(held_out)
    source = settings.data if samples is None else None
    return train_samples, held_out_samples(settings.held_out, source, limit=settings.held_out_samples, seed=sft.seed)


def _holds_chats(samples: list[Sample | SpanText], settings: TrainSettings) -> bool:
    """Whether there are chats in the data, whose segments are their messages."""
    if not any(isinstance(sample, Sample) for sample in samples):
        return False
    if settings.policy == "documents":
        raise DataError(
            "--policy documents is for texts with spans (fields text, spans), but there are chats in the data, whose "
            "segments are their messages; use --policy turns or prefix"
        )
    if settings.attention == "segments" and any(isinstance(sample, SpanText) for sample in samples):
        logger.warning(
            "chats and texts with spans are trained together; the checkpoint records the segments of chats, "
            "so pass segment_ids when texts with spans are run"
        )
    return True


def _encode(
    samples: list[Sample | SpanText],
    which: str,
    settings: TrainSettings,
    sft: SFTSettings,
    segmenter: Any,
    tokenizer: Any,
) -> EncodedData:
    data = encode_dataset(
        samples, segmenter, max_length=sft.max_length, too_long=settings.too_long, tokenizer=tokenizer
    )
    data.tell(which, sft.max_length)
    return data


def _held_out_dataset(
    samples: list[Sample | SpanText], settings: TrainSettings, sft: SFTSettings, segmenter: Any, tokenizer: Any
) -> Any:
    if samples:
        return _encode(samples, "held-out", settings, sft, segmenter, tokenizer).dataset
    if sft.eval_strategy == IntervalStrategy.STEPS:
        raise DataError(
            "--eval_strategy steps scores held-out data, and there is none; pass --held_out, or leave it out"
        )
    sft.eval_strategy, sft.eval_on_start = IntervalStrategy.NO, False
    return None


def _load_model(
    settings: TrainSettings, sft: SFTSettings, model: ModelSettings, *, chats: bool
) -> tuple[Any, Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl import get_quantization_config

    path = model.model_name_or_path
    if path is None:
        raise UnsupportedModelError("there is no model to tune; pass --model_name_or_path (a folder or a hub id)")
    if (Path(path) / "adapter_config.json").is_file():
        raise UnsupportedModelError(
            f"{path} is an adapter; expected a full model. Merge it first (peft's merge_and_unload, then "
            "segattn.save_pretrained), or go on with its run: --resume"
        )
    hub = {"revision": model.model_revision, "trust_remote_code": sft.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(path, **hub)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    policy = "causal" if settings.attention == "causal" else settings.policy
    segmenter = _segmenter(settings, tokenizer, policy, chats=chats)
    _tell_recorded_segmentation(path, policy, settings.layers)
    set_seed(sft.seed)
    options = {"quantization_config": get_quantization_config(model), "attn_implementation": model.attn_implementation}
    network = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=model.dtype,
        **hub,
        **{name: value for name, value in options.items() if value is not None},
        **(sft.model_init_kwargs or {}),
    )
    return enable(network, segmenter, layers=settings.layers), tokenizer, segmenter


def _segmenter(settings: TrainSettings, tokenizer: Any, policy: str, *, chats: bool) -> Any:
    """What the checkpoint will record: texts with spans have segments that no segmenter reads from their tokens."""
    from segattn.templates import Segmenter
    from segattn.templates.markers import MarkerTable

    if chats:
        segmenter = Segmenter.from_tokenizer(tokenizer, policy=policy)
        return segmenter.restricted(
            causal_roles=settings.causal_roles or (), max_segment_length=settings.max_segment_length
        )
    for name in ("causal_roles", "max_segment_length"):
        if getattr(settings, name):
            raise DataError(f"--{name} is about the messages of chats, but the data are texts with spans; leave it out")
    return Segmenter(MarkerTable(()), "causal", tokenizer=tokenizer) if policy == "causal" else None


def _tell_recorded_segmentation(path: str, policy: str, layers: str | None) -> None:
    entry = read_segmentation(path) or {}
    recorded = entry.get("segmenter")
    if recorded is not None and recorded.get("policy") != policy:
        logger.warning("%s was tuned with the policy %r and is now tuned with %r", path, recorded["policy"], policy)
    if entry.get("layers") and layers is None:
        logger.warning("%s was tuned with segments in some layers and is now tuned with them in all: --layers", path)


def _trainer(
    settings: TrainSettings,
    sft: SFTSettings,
    model: ModelSettings,
    network: Any,
    tokenizer: Any,
    dataset: Any,
    held_out: Any,
) -> SegmentSFTTrainer:
    from trl import get_peft_config

    sft.model_init_kwargs = None  # the model is loaded
    trainer = SegmentSFTTrainer(
        opening_steps=settings.opening_steps,
        opening_schedule=settings.opening_schedule,
        causal_share=settings.causal_share,
        model=network,
        args=sft,
        data_collator=SegmentCollator(tokenizer.pad_token_id or 0, sft.pad_to_multiple_of),
        train_dataset=dataset,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=get_peft_config(model),
    )
    trainer.run_settings.update(attention=settings.attention, policy=settings.policy, layers=settings.layers)
    return trainer


def _finish(trainer: SegmentSFTTrainer, sft: SFTSettings) -> Any:
    """Save the model with its segmentation and tokenizer; return it without TRL's patches."""
    tuned = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    inner: Any = tuned.get_base_model() if hasattr(tuned, "peft_config") else tuned
    inner.__dict__.pop("forward", None)  # TRL's fused head
    tuned.eval()
    with told_if_full(Path(sft.output_dir or "."), "the tuned model"):
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            if trainer.is_fsdp_enabled:  # in the form in which checkpoints may be kept, nothing could be loaded
                trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
            trainer.save_model(sft.output_dir)  # gathers the shards of all processes
        elif trainer.is_world_process_zero():
            save_pretrained(tuned, sft.output_dir or ".")
            trainer.processing_class.save_pretrained(sft.output_dir)
    if sft.push_to_hub:
        trainer.push_to_hub()
    return tuned
