"""TRL's SFTTrainer with the segment mask: nothing may drop the segment ids between the data and the attention."""

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTTrainer

from segattn.errors import SegmentError, UnsupportedModelError
from segattn.modeling import causal, enable, is_enabled, set_opening
from segattn.segments import IGNORED_LABEL
from segattn.training.answer_head import score_answers_only
from segattn.training.collator import SegmentCollator
from segattn.training.mixing import check_share, mix
from segattn.training.opening import Opening, OpeningSchedule
from segattn.training.packing import LENGTHS, check_documents_apart, pack
from segattn.training.parallelism import check_parallelism, keep_adapter_whole
from segattn.training.resumable import ResumableTrainer
from segattn.training.sampling import Filled, LengthGroups, fill, same_everywhere
from segattn.training.throughput import Throughput

__all__ = ["SegmentSFTTrainer"]


class SegmentSFTTrainer(ResumableTrainer, SFTTrainer):
    """Fine-tunes an enabled model on rows of input_ids, labels and segment_ids.

    TRL calls the backbone directly and keeps a fixed list of columns; both are seen to here. `eval_loss` is the mean
    over all answer tokens, not over batches. While segments open, held-out data is scored under the plain rule
    (`eval_loss`) and under the bias of the moment too (`eval_opening_loss`).

    With `packing` (strategy "bfd") rows are packed here, with `padding_free` those of a batch are joined; see
    `segattn.training.packing`. `train_sampling_strategy="group_by_length"` draws batches from
    `segattn.training.sampling.LengthGroups`.

    Args:
        opening_steps: raise the bias on the keys ahead from -8 to 0 over this many steps; 0 for the plain rule.
        opening_schedule: how it rises, see `segattn.training.opening.OpeningSchedule`.
        causal_share: the probability with which a sample is read causally in a step (mixed training). Held-out data is
            then scored under both masks (`eval_loss`, `eval_causal_loss`).
        options: SFTTrainer's own; `model` must be enabled, `data_collator` is a `SegmentCollator` by default.

    Raises:
        DataError: rows that are longer than max_length, with packing.
        UnsupportedModelError: the model is not enabled, or does not keep packed documents apart; a packing strategy
            that splits documents; context, sequence or tensor parallelism.
    """

    def __init__(
        self,
        *,
        opening_steps: int = 0,
        opening_schedule: OpeningSchedule = "linear",
        causal_share: float = 0.0,
        **options: Any,
    ) -> None:
        check_share(causal_share)
        model = options["model"]
        if isinstance(model, str) or not is_enabled(model):
            raise UnsupportedModelError(
                f"the model is {model if isinstance(model, str) else type(model).__name__}, which is not enabled; load "
                "it and call segattn.enable(model, segmenter) before the trainer is made"
            )
        if isinstance(options.get("eval_dataset"), dict):
            raise UnsupportedModelError("eval_dataset is a dict; expected one data set, held-out tasks joined")
        args = options["args"]
        check_parallelism(args, model)
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        self._held_out_sum: Tensor | None = None
        self.causal_share = causal_share
        self._batches_of_step = (-1, 0)
        self.throughput = Throughput()
        self._join_rows(options)
        # TRL takes no collator for joined rows, and wants no max_length for rows that it does not pack itself.
        joined, max_length = args.packing or args.padding_free, args.max_length
        collator = options.pop("data_collator", None)
        args.max_length = None if joined and not args.packing else max_length
        super().__init__(**options, data_collator=None if joined else collator)
        args.max_length = max_length
        self.data_collator = collator or SegmentCollator(
            self.processing_class.pad_token_id or 0, args.pad_to_multiple_of
        )
        if joined:
            self.data_collator = replace(self.data_collator, padding_free=True)
        # TRL may have wrapped the model in an adapter: the wrapper must save the segmentation too.
        enable(self.model)
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.is_fsdp_enabled and hasattr(self.model, "peft_config"):
            keep_adapter_whole(self.accelerator.state.fsdp_plugin)
        if joined and not sharded:
            check_documents_apart(self.model)
        if self.accelerator.device.type == "cpu" and not sharded:
            score_answers_only(self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model)
        self.opening = self._opening(opening_steps, opening_schedule)
        self.add_callback(self.opening)
        self.run_settings.update(
            opening_steps=opening_steps, opening_schedule=opening_schedule, causal_share=causal_share
        )

    def _opening(self, steps: int, schedule: OpeningSchedule) -> Opening:
        if schedule == "learned" and self.args.world_size > 1:
            raise UnsupportedModelError(
                "opening_schedule 'learned' runs in one process: what it learns lies outside of the model, and would "
                "not be shared between processes. Use another schedule"
            )
        return Opening(self.model, steps, schedule)

    @staticmethod
    def _join_rows(options: dict[str, Any]) -> None:
        """Pack the data sets that TRL's flags say are packed, with their segment ids."""
        args = options["args"]
        if args.packing and args.packing_strategy != "bfd":
            raise UnsupportedModelError(
                f"packing_strategy {args.packing_strategy!r} splits documents, and with them segments; expected 'bfd'"
            )
        collator = options.get("data_collator")
        if (args.packing or args.padding_free) and not isinstance(collator, SegmentCollator | None):
            raise UnsupportedModelError(
                f"data_collator is a {type(collator).__name__}, which does not join rows; expected a SegmentCollator, "
                "or none, with packing and padding_free"
            )
        packed = {
            "train_dataset": args.packing,
            "eval_dataset": args.packing if args.eval_packing is None else args.eval_packing,
        }
        for name, wanted in packed.items():
            rows = options.get(name)
            if wanted and rows is not None and LENGTHS not in rows.column_names:
                options[name] = pack(rows, args.max_length, quiet=args.disable_tqdm)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns or []
        if "segment_ids" not in columns:
            self._signature_columns: list[str] | None = [*columns, "segment_ids"]

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return self._seeded(super()._get_train_sampler(*args, **kwargs))

    def _get_eval_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return self._seeded(super()._get_eval_sampler(*args, **kwargs))

    def _seeded(self, sampler: Any) -> Any:
        """The sampler; one that groups by length with an order that dropout cannot change."""
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroups(sampler.batch_size * self.args.world_size, list(sampler.lengths), seed)

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, sampler_fn: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Give transformers' loader; with several processes, as many rows for each of them and none twice."""
        rebalanced = description == "Training" and self.args.train_sampling_strategy == "batch_rebalance"
        if self.args.world_size > 1 and isinstance(dataset, Dataset) and not rebalanced:
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            order = same_everywhere(sampler_fn and sampler_fn(dataset), len(dataset), seed)
            filled = fill(dataset, batch_size * self.args.world_size)
            every = Filled(order, len(filled) - len(dataset))
            return super()._get_dataloader(filled, description, batch_size, lambda _: every, *args, **kwargs)
        return super()._get_dataloader(dataset, description, batch_size, sampler_fn, *args, **kwargs)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Learn a batch, some of its samples causally where training is mixed, and count its tokens."""
        self.throughput.add(inputs)
        return super().training_step(model, self._mixed(inputs), *args, **kwargs)

    def _mixed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if not self.causal_share or inputs.get("segment_ids") is None:
            return inputs
        step = self.state.global_step
        self._batches_of_step = (step, self._batches_of_step[1] + 1 if self._batches_of_step[0] == step else 0)
        # Of the batch's place in the run alone: a run that goes on draws what an unbroken one does.
        place = f"{self.args.seed} {self._batches_of_step} {self.args.process_index}"
        generator = torch.Generator().manual_seed(zlib.crc32(place.encode()))
        mixed = mix(inputs["segment_ids"], inputs.get("position_ids"), self.causal_share, generator)
        return {**inputs, "segment_ids": mixed}

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute TRL's loss on a batch that must hold segment ids."""
        if inputs.get("segment_ids") is None:
            raise SegmentError(
                f"the batch holds {sorted(inputs)} but no segment_ids; expected a data set with that column and a "
                "SegmentCollator"
            )
        return super().compute_loss(model, inputs, *args, **kwargs)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Score a held-out batch, and add it to the sum over tokens."""
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if loss is not None and self._held_out_sum is not None:
            count = (inputs["labels"][:, 1:] != IGNORED_LABEL).sum().to(loss.device)
            self._held_out_sum += torch.stack([loss.detach().double() * count, count.double()])
        return loss, logits, labels

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Score held-out data under the plain rule and, while segments open, under the bias of the moment."""
        bias = self.opening.bias(self.state.global_step)
        set_opening(self.model, None)
        try:
            with self.throughput.paused():
                metrics = self._exact_evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
                if bias is not None:
                    set_opening(self.model, bias)
                    prefix = f"{metric_key_prefix}_opening"
                    metrics.update(self._exact_evaluate(*args, metric_key_prefix=prefix, **kwargs))
                if self.causal_share:
                    with causal(self.model):
                        prefix = f"{metric_key_prefix}_causal"
                        metrics.update(self._exact_evaluate(*args, metric_key_prefix=prefix, **kwargs))
        finally:
            set_opening(self.model, bias)
        return metrics

    def _exact_evaluate(self, *args: Any, metric_key_prefix: str, **kwargs: Any) -> dict[str, float]:
        self._held_out_sum = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        try:
            metrics = super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            exact = self._held_out_mean()
            return {name: exact if name.endswith("_loss") else value for name, value in metrics.items()}
        finally:
            self._held_out_sum = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Make transformers' optimizer, which also learns how segments open where that is learned."""
        optimizer = super().create_optimizer(*args, **kwargs)
        for group in self.opening.parameters():
            optimizer.add_param_group(group)
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self.opening.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.opening.load(Path(checkpoint))

    def _held_out_mean(self) -> float:
        total, count = self.accelerator.reduce(self._held_out_sum, reduction="sum").tolist()
        return float(total / max(count, 1))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the exact held-out loss in place of the mean over batches, and with how fast the run learns."""
        if self._held_out_sum is not None:
            exact = self._held_out_mean()
            logs.update({name: exact for name in logs if name.endswith("_loss")})
        if "loss" in logs:
            logs.update(self.throughput.take(lambda counts: self.accelerator.reduce(counts, reduction="sum")))
            if self.opening.steps:
                logs["opening_bias"] = self.opening.mean_bias(self.state.global_step)
        super().log(logs, start_time)

    def _write_checkpoint(self, *args: Any, **kwargs: Any) -> Path:
        with self.throughput.paused():
            return super()._write_checkpoint(*args, **kwargs)
