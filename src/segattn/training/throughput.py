"""How fast a run learns: tokens counted on the device, seconds without evaluations and saves."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from segattn.segments import IGNORED_LABEL

__all__ = ["Throughput"]


class Throughput:
    """Counts the tokens of training batches, and the time they take.

    The counts stay on the device of the batches until they are taken, so that no step waits for them.
    """

    def __init__(self) -> None:
        self._counts: Tensor | None = None
        self._seconds = 0.0
        self._since: float | None = None

    def add(self, inputs: Mapping[str, Any]) -> None:
        """Count a batch that is about to be learned; the first one starts the clock.

        Args:
            inputs: input_ids and labels, int64 (B, L), and an attention_mask of the same shape; without one (joined
                rows) every token counts.
        """
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        size = torch.tensor(ids.numel(), device=ids.device)
        answers = (inputs["labels"][:, 1:] != IGNORED_LABEL).sum()
        counts = torch.stack([size if mask is None else mask.sum(), answers, size])
        self._counts = counts if self._counts is None else self._counts + counts
        if self._since is None:
            self._since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock during an evaluation or a save."""
        running = self._since is not None
        self._stop()
        try:
            yield
        finally:
            if running:
                self._since = time.perf_counter()

    def take(self, total: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Return the rates since they were last taken, and begin anew.

        Args:
            total: adds up the counts, int64 (3,), of all processes; None with one process.

        Returns:
            "tokens_per_second" (without padding), "answer_tokens_per_second" (those with a label) and "padding_share"
            (of all positions, 0 to 1); nothing where nothing was counted.
        """
        if self._counts is None:
            return {}
        self._stop()
        counts, self._counts = self._counts, None
        tokens, answers, positions = (counts if total is None else total(counts)).tolist()
        seconds, self._seconds = self._seconds, 0.0
        self._since = time.perf_counter()
        return {
            "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
            "answer_tokens_per_second": round(answers / max(seconds, 1e-9), 1),
            "padding_share": round(1 - tokens / max(positions, 1), 4),
        }

    def _stop(self) -> None:
        if self._since is None:
            return
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()  # what was asked for before belongs to the time before
        self._seconds += time.perf_counter() - self._since
        self._since = None
