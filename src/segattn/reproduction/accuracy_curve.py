"""Accuracy during training: how fast an arm learns its task under the mask it is trained for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from segattn.data import Sample
from segattn.evaluation.choices import rank_choices
from segattn.evaluation.likelihood import Attention
from segattn.modeling import opening_of, set_opening
from segattn.reproduction.processes import write_json
from segattn.reproduction.scoring import answered_rightly

__all__ = ["AccuracyCurve"]


class AccuracyCurve(TrainerCallback):
    """Answers a few held-out items before the first step and at equal distances.

    Attributes:
        points: [{"step", "correct": [0 or 1 for each item]}].
        file: where the points are kept, for a run that goes on from a checkpoint.
    """

    def __init__(
        self, items: Sequence[Sample], segmenter: Any, attention: Attention, *, points: int, batch_size: int,
        max_new_tokens: int, file: Path,
    ) -> None:  # fmt: skip
        self.items = list(items)
        self.segmenter = segmenter
        self.attention = attention
        self.count = points
        self.options: dict[str, int] = {"batch_size": batch_size}
        self.max_new_tokens = max_new_tokens
        self.file = file
        self.points: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Measure before the first step, or take up what was measured before the checkpoint."""
        if state.global_step == 0:
            self.points = []
            self._measure(state, kwargs["model"])
        elif self.file.exists():
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            self.points = [point for point in kept if point["step"] <= state.global_step]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Measure at equal distances, and after the last step."""
        every = max(1, state.max_steps // self.count)
        if state.global_step % every == 0 or state.global_step == state.max_steps:
            self._measure(state, kwargs["model"])

    def _measure(self, state: Any, model: Any) -> None:
        training, bias = model.training, opening_of(model)
        set_opening(model, None)  # the plain rule, which the finished model follows
        try:
            right = self._right(model)
        finally:
            set_opening(model, bias)
            model.train(training)
        self.points.append({"step": state.global_step, "correct": [int(one) for one in right]})
        write_json(self.file, self.points)

    def _right(self, model: Any) -> list[bool]:
        options: dict[str, Any] = {"attention": self.attention, **self.options}
        if all(item.choices for item in self.items):
            return [one.correct for one in rank_choices(model, self.segmenter, self.items, **options)]
        return answered_rightly(model, self.segmenter, self.items, max_new_tokens=self.max_new_tokens, **options)
