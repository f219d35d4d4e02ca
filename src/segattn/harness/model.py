"""The model `segattn` of the lm-evaluation-harness: its `hf` model, run under the mask that the checkpoint needs."""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from segattn.errors import SegmentError
from segattn.harness.checkpoint import name_of, recorded_entry, split_adapter
from segattn.harness.options import refuse_options, refuse_unknown
from segattn.harness.response_cache import check_response_cache
from segattn.harness.rows import PlainContext, PromptSegments, ScoredRow, check_plain_context, scored_row, tables
from segattn.modeling import causal, enable, is_enabled
from segattn.modeling.attention_choice import (
    Attention,
    AttentionChoice,
    check_attention,
    choose_attention,
    tuned_with_segments,
)
from segattn.segments import CAUSAL

__all__ = ["SegmentLM"]

logger = logging.getLogger(__name__)

Request = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("segattn")
class SegmentLM(HFLM):
    """`hf` of the lm-evaluation-harness, for checkpoints that read their prompts with segments.

    Tokens, batches and scores are those of `hf`; only the mask differs. A prompt's segments are found in its token ids
    by the checkpoint's segmenter; a continuation, generated text and a text whose likelihood is measured as a whole
    (loglikelihood_rolling) are causal. With attention="causal" it is `hf`.

    Args:
        pretrained: as for `hf`: a folder, a hub id or a model; also an adapter, "smollm2" and "smollm2-segments".
        attention: "auto" (as the checkpoint was tuned), "segments" or "causal".
        plain_context: a prompt without chat template is refused ("refuse"), one "segment", or "causal".
        options: of `HFLM`: peft, dtype, device, batch_size, max_length, ...

    Raises:
        SegmentError: an unknown attention or plain_context; no adapter where `peft` says; a checkpoint whose segment
            ids were always given, unless `plain_context` says what a prompt is.
        UnsupportedModelError: an option or a model that does not go with segments.
        TemplateError: markers that cannot be read, or that the tokenizer does not have.
    """

    def __init__(
        self,
        pretrained: Any,
        attention: Attention = "auto",
        plain_context: PlainContext = "refuse",
        **options: Any,
    ) -> None:
        check_attention(attention)
        check_plain_context(plain_context)
        if not isinstance(pretrained, str):
            refuse_unknown(options, {*inspect.signature(HFLM.__init__).parameters, "attention", "plain_context"})
        options = {"pretrained": pretrained, **options}
        name, options = name_of(options), split_adapter(options)
        entry = recorded_entry(options)
        if attention == "segments" or (attention == "auto" and tuned_with_segments(entry)):
            refuse_options(options)
        super().__init__(**options)
        self._name = name
        self._plain = plain_context
        self._layers = None if entry is None else entry["layers"]
        self._choice = self._choose(attention, entry)
        if self._choice.note is not None:
            logger.warning(self._choice.note)
        # What a pass over rows of tokens reads them with; each kind of request sets its own.
        self._segments_of: Callable[[Tensor], Tensor] | None = None
        self._encoded_prompts: tuple[Tensor, Tensor] | None = None
        if self._choice.attention == "segments":
            self._find_segments = PromptSegments(self._choice.segmenter, plain_context, self.tokenizer.bos_token_id)
            if not (is_enabled(self.model) and self._choice.recorded):
                enable(self.model, self._choice.segmenter, layers=self._layers)

    def _choose(self, attention: Attention, entry: dict[str, Any] | None) -> AttentionChoice:
        given = entry is not None and entry["segmenter"] is None
        if given and attention != "causal" and self._plain != "refuse":
            return AttentionChoice("segments", None, True)
        return choose_attention(self._name, attention, entry, self.tokenizer)

    @property
    def _reads_segments(self) -> bool:
        return self._choice.attention == "segments"

    def get_model_info(self) -> dict[str, Any]:
        """Return what `hf` tells of the model, and how it was run; the harness writes it into the results."""
        segmenter = self._choice.segmenter if self._reads_segments else None
        return {
            **super().get_model_info(),
            "attention": self._choice.attention,
            "segment_policy": None if segmenter is None else segmenter.policy,
            "segments_as_tuned": self._choice.recorded if self._reads_segments else None,
            "segment_layers": self._layers if self._reads_segments else None,
            "segmenter": None if segmenter is None else segmenter.to_dict(),
            "plain_context": self._plain if self._reads_segments else None,
            "segattn_version": version("segattn"),
        }

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take the harness's cache of responses (--use_cache), unless it holds those of another mask.

        Raises:
            SegmentError: see `check_response_cache`.
        """
        segmenter = self._choice.segmenter
        check_response_cache(
            cache_hook.dbdict,
            {
                "model": self._name,
                "attention": self._choice.attention,
                "segmenter": segmenter.to_dict() if self._reads_segments and segmenter is not None else None,
                "plain_context": self._plain if self._reads_segments else None,
            },
        )
        super().set_cache_hook(cache_hook)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if not self._reads_segments:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        results: list[Any] = [None] * len(requests)
        for table, places in tables(self._scored_rows(requests)):
            with self._reading(table.segment_ids):
                found = super()._loglikelihood_tokens([requests[place] for place in places], disable_tqdm, override_bs)
            for place, result in zip(places, found, strict=True):
                results[place] = result
        return results

    def _scored_rows(self, requests: Sequence[Request]) -> list[ScoredRow]:
        prompts: dict[str, tuple[list[int], list[int]]] = {}
        rows = []
        for strings, context, continuation in requests:
            # No prompt: a text measured as a whole, or the bare likelihood of an answer.
            prompt, segments = context, [CAUSAL] * len(context)
            if strings is not None and strings[0]:
                if strings[0] not in prompts:
                    ids = self.tok_encode(strings[0])
                    prompts[strings[0]] = ids, self._find_segments(ids, strings[0])
                prompt, segments = prompts[strings[0]]
            rows.append(scored_row(prompt, segments, context, continuation, self.max_length))
        return rows

    def _detect_batch_size(self, requests: Sequence[Request] | None = None, pos: int = 0) -> int:
        # One segment from end to end is what takes most.
        with self._reading(torch.zeros_like):
            return super()._detect_batch_size(requests, pos)

    @contextmanager
    def _reading(self, segments_of: Callable[[Tensor], Tensor]) -> Iterator[None]:
        before, self._segments_of = self._segments_of, segments_of
        try:
            yield
        finally:
            self._segments_of = before

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        if not self._reads_segments:
            with self._causally():
                return super()._model_call(inps, attn_mask, labels)
        segments_of, precision = self._segments_of, self.mixed_precision_dtype
        if segments_of is None:
            raise _not_told(inps)
        with torch.no_grad(), torch.autocast(self.device.type, dtype=precision, enabled=precision is not None):
            return self.model(inps, segment_ids=segments_of(inps)).logits

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Encode prompts as `hf` does, and keep their segments for the generation that follows."""
        ids, mask = super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)
        if self._reads_segments:
            whole, real = super().tok_batch_encode(strings, padding_side)
            segments = torch.full_like(whole, CAUSAL)
            for row, text in enumerate(strings):
                places = real[row].nonzero().flatten()
                segments[row, places] = torch.tensor(self._find_segments(whole[row, places].tolist(), text))
            self._encoded_prompts = ids, segments[:, -ids.shape[1] :]
        return ids, mask

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        if self._reads_segments:
            ids, segments = self._encoded_prompts or (context[:0].cpu(), None)
            if segments is None or not torch.equal(ids, context.cpu()):
                raise _not_told(context)
            options["segment_ids"] = segments.to(context.device)
        with self._causally():
            return super()._model_generate(context, max_length, stop, **options)

    def _causally(self) -> AbstractContextManager[None]:
        """Around a causal pass: a model that was given enabled does not follow its segmenter then."""
        return causal(self.model) if not self._reads_segments and is_enabled(self.model) else nullcontext()


def _not_told(tokens: Tensor) -> SegmentError:
    return SegmentError(
        f"the harness runs rows of shape {tuple(tokens.shape)} that belong to no request, so their segments are not "
        "known; lm_eval 0.4.13 does not do that, this release does: install 0.4.13, and report it"
    )
