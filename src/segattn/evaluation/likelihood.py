"""How likely a model finds given answers to a prompt. The prompt runs once, all its answers go on from its cache.

Shapes: P prompts, R answer rows, N prompt tokens, K answer tokens, V vocabulary.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from segattn.data import EncodedPrompt, Encoder, Sample, pad_rows
from segattn.errors import UnsupportedModelError
from segattn.modeling import causal, is_enabled
from segattn.segments import CAUSAL

__all__ = ["Attention", "ScoredSample", "running", "score_answers"]

Attention = Literal["segments", "causal"]


@dataclass(frozen=True)
class ScoredSample:
    """The log-likelihoods of the answers to one prompt.

    Attributes:
        position: the sample's place in the given sequence.
        log_likelihoods: per answer, summed over its tokens (content and end marker), in nats.
        tokens: per answer, how many tokens.
    """

    position: int
    log_likelihoods: tuple[float, ...]
    tokens: tuple[int, ...]


def running(model: Any, attention: Attention) -> AbstractContextManager[None]:
    """Return the context in which an enabled model runs under a mask.

    Raises:
        UnsupportedModelError: the model is not enabled, or `attention` is neither "segments" nor "causal".
    """
    if attention not in ("segments", "causal"):
        raise UnsupportedModelError(f"attention is {attention!r}; expected 'segments' or 'causal'")
    if not is_enabled(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not enabled; call segattn.enable(model, segmenter) first (also to run causally)"
        )
    return causal(model) if attention == "causal" else nullcontext()


def score_answers(
    model: Any,
    segmenter: Any,
    samples: Sequence[Sample],
    answers: Sequence[Sequence[str]],
    *,
    attention: Attention = "segments",
    batch_size: int = 16,
) -> Iterator[ScoredSample]:
    """Score the given answers to each sample's prompt.

    Args:
        model: enabled, in eval mode.
        segmenter: makes tokens and segments from messages; answers are always causal.
        samples: their own answers and choices are not looked at.
        answers: per sample, at least one text.
        attention: "segments", or "causal" to ignore the segments.
        batch_size: how many answers run at once.

    Yields:
        One result per sample, prompts of similar length together, not in the given order.

    Raises:
        UnsupportedModelError: see `running`.
        DataError: a prompt whose tokens are not the beginning of the conversation's.
    """
    context = running(model, attention)
    encoder = Encoder(segmenter)
    prompts = [encoder.prompt(sample, texts) for sample, texts in zip(samples, answers, strict=True)]
    order = sorted(range(len(prompts)), key=lambda position: len(prompts[position].input_ids))
    with context, torch.inference_mode():
        for batch in _batches(order, prompts, batch_size):
            scores = _score_batch(model, encoder.pad_token_id, [prompts[position] for position in batch], batch_size)
            for position, row in zip(batch, scores, strict=True):
                lengths = tuple(len(answer) for answer in prompts[position].answers)
                yield ScoredSample(position, tuple(row), lengths)


def _batches(order: Sequence[int], prompts: Sequence[EncodedPrompt], batch_size: int) -> Iterator[list[int]]:
    """Prompts in groups whose answers number at most `batch_size`; a prompt with more stands alone."""
    batch: list[int] = []
    rows = 0
    for position in order:
        count = len(prompts[position].answers)
        if batch and rows + count > batch_size:
            yield batch
            batch, rows = [], 0
        batch.append(position)
        rows += count
    if batch:
        yield batch


def _score_batch(model: Any, fill: int, prompts: Sequence[EncodedPrompt], batch_size: int) -> list[list[float]]:
    prefill = _Prefill(model, fill, prompts)
    places = [(number, place) for number, prompt in enumerate(prompts) for place in range(len(prompt.answers))]
    # Answers of similar length together: less padding.
    places.sort(key=lambda found: len(prompts[found[0]].answers[found[1]]))
    scores = [[0.0] * len(prompt.answers) for prompt in prompts]
    for start in range(0, len(places), batch_size):
        chunk = places[start : start + batch_size]
        rows = [(number, prompts[number].answers[place]) for number, place in chunk]
        last = start + batch_size >= len(places)
        for (number, place), value in zip(chunk, prefill.score(rows, keep_cache=not last), strict=True):
            scores[number][place] = value
    return scores


class _Prefill:
    """Prompts that have run: what follows them goes on from their cache."""

    def __init__(self, model: Any, fill: int, prompts: Sequence[EncodedPrompt]) -> None:
        self.model = model
        self.fill = fill
        ids = [prompt.input_ids for prompt in prompts]
        # On the left, so that every answer begins at the same place in the cache.
        self.mask_PN = pad_rows([[1] * len(row) for row in ids], 0, side="left").to(model.device)
        self.segments_PN = pad_rows([prompt.segment_ids for prompt in prompts], CAUSAL, side="left").to(model.device)
        output = model(
            input_ids=pad_rows(ids, self.fill, side="left").to(model.device),
            attention_mask=self.mask_PN,
            segment_ids=self.segments_PN,
            position_ids=(self.mask_PN.cumsum(-1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        self.next_PV = output.logits[:, -1].float().log_softmax(-1)
        self.cache = output.past_key_values

    def score(self, rows: Sequence[tuple[int, list[int]]], *, keep_cache: bool) -> list[float]:
        """Sum the log-likelihoods of answers, given as (number of the prompt, tokens)."""
        of_row = torch.tensor([number for number, _ in rows], device=self.model.device)
        tokens_RK = pad_rows([answer for _, answer in rows], self.fill).to(self.model.device)
        real_RK = pad_rows([[1] * len(answer) for _, answer in rows], 0).to(self.model.device)
        total = self.next_PV[of_row].gather(-1, tokens_RK[:, :1]).squeeze(-1).double()
        if tokens_RK.shape[1] > 1:
            log_probs_RK = self._continue(of_row, tokens_RK, real_RK, keep_cache)
            total += (log_probs_RK * real_RK[:, 1:]).double().sum(-1)
        scores: list[float] = total.tolist()
        return scores

    def _continue(self, of_row: Tensor, tokens_RK: Tensor, real_RK: Tensor, keep_cache: bool) -> Tensor:
        """Log-likelihoods of the second and later tokens, (R, K - 1)."""
        cache = copy.deepcopy(self.cache) if keep_cache else self.cache
        cache.batch_select_indices(of_row)
        given_RK, later_RK = tokens_RK[:, :-1], tokens_RK[:, 1:]
        mask_PN, segments_PN = self.mask_PN[of_row], self.segments_PN[of_row]
        offsets = torch.arange(given_RK.shape[1], device=of_row.device)
        logits_RKV = self.model(
            input_ids=given_RK,
            attention_mask=torch.cat([mask_PN, real_RK[:, :-1]], 1),
            segment_ids=torch.cat([segments_PN, torch.full_like(given_RK, CAUSAL)], 1),
            position_ids=mask_PN.sum(-1, keepdim=True) + offsets,
            past_key_values=cache,
            use_cache=True,
        ).logits.float()
        chosen_RK = logits_RKV.gather(-1, later_RK[..., None]).squeeze(-1)
        return chosen_RK - logits_RKV.logsumexp(-1)
