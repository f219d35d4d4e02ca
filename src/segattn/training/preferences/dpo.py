"""TRL's DPOTrainer with segment prompts: policy and reference read the prompt by the same rule."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

from torch import Tensor
from trl import DPOConfig, DPOTrainer

from segattn.errors import SegmentError, UnsupportedModelError
from segattn.modeling import causal, enable, is_enabled
from segattn.training.cutting import TooLong
from segattn.training.dataset import EncodedData
from segattn.training.preferences.checks import check_options, copy_of, segmenter_to_train_with, uncut
from segattn.training.preferences.collator import SegmentPreferenceCollator
from segattn.training.preferences.pairs import LEFT_OUT, PairSegments
from segattn.training.preferences.tokens import SegmentTokenizer

__all__ = ["Reference", "SegmentDPOTrainer"]

Reference = Literal["segments", "causal"]


class SegmentDPOTrainer(DPOTrainer):
    """Tunes an enabled model on pairs of answers: prompts under their segments, answers causal.

    Rows are TRL's conversational ones: `prompt`, `chosen` and `rejected` as lists of messages (or without `prompt`,
    which is then what both have in common), `tools` if there are any. The model's segmenter tokenizes them and tells
    the segments of the prompt from its token ids. Losses, metrics and saving are TRL's.

    The reference is what TRL makes it: the model without its adapter, a frozen copy of an adapter that is tuned
    further, or `ref_model`. Where all weights are tuned and no `ref_model` is given, it is a copy of the model as it
    is handed over.

    Args:
        reference: "segments" (the default): the reference reads prompts by the rule of the policy. "causal": it
            reads them causally, as the base model was made to.
        too_long: what happens to pairs over `args.max_length`: "error", "drop", or a cut of the prompt, "cut_left" or
            "cut_longest_segment" (see `segattn.training.cutting`). Takes the place of TRL's truncation.
        options: DPOTrainer's own. `model` and `ref_model` must be enabled (`ref_model` not with reference="causal");
            `processing_class` is the segmenter's tokenizer.

    Raises:
        UnsupportedModelError: a model that is not enabled; an option that would drop the mask.
        SegmentError: a model without a segmenter.
        DataError: rows of plain text, completions with segments, pairs over max_length.
    """

    _precompute_model_hash: str | None
    precompute_ref_logps: bool

    def __init__(self, *, reference: Reference = "segments", too_long: TooLong = "error", **options: Any) -> None:
        self._segmenter = segmenter_to_train_with(options["model"])
        check_options(options, self._segmenter)
        for name, value, allowed in (("reference", reference, Reference), ("too_long", too_long, TooLong)):
            if value not in get_args(allowed):
                raise SegmentError(f"{name} is {value!r}; expected one of {', '.join(map(repr, get_args(allowed)))}")
        self.reference, self.too_long = reference, too_long
        args = options.get("args") or DPOConfig("trainer_output")
        options["args"] = args
        if args.truncation_mode != "keep_start":
            raise UnsupportedModelError(
                f"truncation_mode {args.truncation_mode!r} would cut segments; leave it out and give too_long="
                "'cut_left' or 'cut_longest_segment'"
            )
        self._set_reference(options)
        tokenizer = options["processing_class"]
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        options["data_collator"] = options.get("data_collator") or SegmentPreferenceCollator(
            tokenizer.pad_token_id, pad_to_multiple_of=args.pad_to_multiple_of
        )
        super().__init__(**options)
        # TRL may have wrapped the model in an adapter: the wrapper must save the segmentation too.
        enable(self.model)

    def _set_reference(self, options: dict[str, Any]) -> None:
        model, args = options["model"], options["args"]
        given = options.get("ref_model")
        if given is None:
            has_adapter = hasattr(model, "peft_config") or options.get("peft_config") is not None
            if not has_adapter and not args.precompute_ref_log_probs:
                # TRL would load it by name, under an attention implementation that only enabled models have.
                options["ref_model"] = copy_of(model)
        elif self.reference == "segments" and not is_enabled(given):
            raise UnsupportedModelError(
                f"ref_model is a {type(given).__name__} that is not enabled and would read prompts causally; call "
                "segattn.enable(ref_model, segmenter), or give reference='causal'"
            )

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:  # noqa: ARG002
        with uncut(args) as max_length:
            rows = super()._prepare_dataset(dataset, SegmentTokenizer(self._segmenter), args, dataset_name)
        segments = PairSegments(self._segmenter, max_length, self.too_long)
        if not hasattr(rows, "num_rows"):  # a stream
            return rows.map(segments).filter(_is_kept)
        rows = rows.map(segments, num_proc=args.dataset_num_proc, desc=f"Reading the segments of {dataset_name} data")
        removed = rows["removed_tokens"]
        kept = rows.filter(_is_kept, num_proc=args.dataset_num_proc) if LEFT_OUT in removed else rows
        cut = [count for count in removed if count > 0]
        EncodedData(kept, len(rows) - len(kept), len(cut), sum(cut)).tell(dataset_name, max_length)
        return kept

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns or []
        if "prompt_segment_ids" not in columns:
            self._signature_columns: list[str] | None = [*columns, "prompt_segment_ids"]

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        # TRL finds what it computed before by the data and the weights; the reference's mask decides it too.
        model_hash = self._precompute_model_hash
        self._precompute_model_hash = f"{model_hash} {self.reference}"
        try:
            return super()._precompute_ref_logps(dataset, name, batch_size)
        finally:
            self._precompute_model_hash = model_hash

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Compute the reference's log-probabilities of chosen and rejected answers, each (pairs,)."""
        _check_batch(inputs)
        read: AbstractContextManager[None] = nullcontext()
        if self.reference == "causal":
            inputs = {name: value for name, value in inputs.items() if name != "segment_ids"}
            read = causal(model) if is_enabled(model) else read
        with read:
            return super().compute_ref_log_probs(model, inputs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        _check_batch(inputs)
        if self.reference == "segments" or self.precompute_ref_logps:
            return super()._compute_loss(model, inputs, return_outputs)
        # TRL runs the reference amid the loss, on the policy's own inputs: hand it what was computed causally before.
        chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        inputs = {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        self.precompute_ref_logps = True
        try:
            return super()._compute_loss(model, inputs, return_outputs)
        finally:
            self.precompute_ref_logps = False


def _is_kept(row: dict[str, Any]) -> bool:
    return bool(row["removed_tokens"] != LEFT_OUT)


def _check_batch(inputs: dict[str, Any]) -> None:
    if inputs.get("segment_ids") is None:
        raise SegmentError(
            f"the batch holds {sorted(inputs)} but no segment_ids; expected the trainer's own SegmentPreferenceCollator"
        )
