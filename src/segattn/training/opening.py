"""Opening segments gradually: how much the keys ahead count at each step of training."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import TrainerCallback

from segattn.errors import UnsupportedModelError
from segattn.modeling import set_opening
from segattn.modeling.families import pretrained_model_of
from segattn.modeling.layer_choice import head_count, layer_count

__all__ = ["OPENING_START", "SCHEDULES", "Opening", "OpeningSchedule", "opening_bias"]

OPENING_START = -8.0
"""The bias of the first step: a key ahead weighs e^-8, about 0.0003 of what its score says."""

OpeningSchedule = Literal["linear", "probability", "bottom_up", "top_down", "learned"]
"""linear: the bias rises linearly; probability: its exponential does, the factor on a key ahead's weight; bottom_up,
top_down: each layer's bias rises linearly within half of the time, the first layers first, or the last ones; learned:
each head's bias is learned, as a factor from 0 to 2 on the linear one, so that it ends at 0 too."""

SCHEDULES: tuple[str, ...] = get_args(OpeningSchedule)

_SHARE_OF_A_LAYER = 0.5
_RATE = 0.1  # of learned factors: Adam moves one by about this a step; theirs is another scale than that of weights
_FILE = "opening.pt"


def opening_bias(step: int, opening_steps: int, schedule: str = "linear", layers: int = 1) -> "float | Tensor | None":
    """Return the bias on the scores that segments allow and causal attention forbids.

    Args:
        step: the number of finished optimizer steps.
        opening_steps: over how many steps the bias rises from -8 to 0.
        schedule: one of `SCHEDULES` that is not learned.
        layers: how many the model has, for schedules by layer.

    Returns:
        -8 at step 0, rising; float32 (layers,) for schedules by layer; None, the plain rule, from `opening_steps` on.
    """
    if step >= opening_steps:
        return None
    done = step / opening_steps
    if schedule == "linear":
        return OPENING_START * (1 - done)
    if schedule == "probability":
        start = math.exp(OPENING_START)
        return math.log(start + (1 - start) * done)
    if schedule not in ("bottom_up", "top_down"):
        raise ValueError(f"schedule is {schedule!r}; expected one of {', '.join(SCHEDULES[:-1])}")
    if layers == 1:
        return torch.full((1,), OPENING_START * (1 - done))
    place = torch.linspace(0, 1, layers)
    begins = (place if schedule == "bottom_up" else 1 - place) * (1 - _SHARE_OF_A_LAYER)
    return OPENING_START * (1 - ((done - begins) / _SHARE_OF_A_LAYER).clamp(0, 1))


class Opening(TrainerCallback):
    """Sets the opening bias of each step; without opening steps, the plain rule.

    Args:
        model: enabled.
        steps: over how many steps segments open; 0 for the plain rule from the start.
        schedule: see `OpeningSchedule`.

    Raises:
        UnsupportedModelError: a schedule by layer or head, and a model whose layers share one mask.
    """

    def __init__(self, model: Any, steps: int, schedule: str) -> None:
        self.model = model
        self.steps = steps
        self.schedule = schedule
        self.layers = 1  # as many as differ
        self.factors: torch.nn.Parameter | None = None
        if not steps or schedule in ("linear", "probability"):
            return
        inner = pretrained_model_of(model)
        self.layers = layer_count(inner)
        # Refuses models whose layers share one mask, before anything is trained.
        set_opening(model, torch.full((self.layers,), OPENING_START))
        set_opening(model, None)
        if schedule == "learned":
            self.factors = torch.nn.Parameter(torch.zeros(self.layers, head_count(inner)))

    def bias(self, step: int) -> "float | Tensor | None":
        """Return the bias after `step` finished steps: a number, (layers,), (layers, heads), or None."""
        if self.factors is None:
            return opening_bias(step, self.steps, self.schedule, self.layers)
        linear = opening_bias(step, self.steps)
        return None if linear is None else linear * 2 * self.factors.sigmoid()

    def mean_bias(self, step: int) -> float:
        """Return the mean over layers and heads, 0 once segments are open."""
        bias = self.bias(step)
        return float(bias.detach().mean()) if isinstance(bias, Tensor) else bias or 0.0

    def parameters(self) -> Iterator[dict[str, Any]]:
        """Yield what an optimizer must be given beside the model's parameters."""
        if self.factors is not None:
            yield {"params": [self.factors], "lr": _RATE, "weight_decay": 0.0}

    def save(self, folder: Path) -> None:
        """Write what was learned into a checkpoint."""
        if self.factors is not None:
            torch.save(self.factors.detach(), folder / _FILE)

    def load(self, folder: Path) -> None:
        """Read it back."""
        if self.factors is not None:
            with torch.no_grad():
                self.factors.copy_(torch.load(folder / _FILE, weights_only=True))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Refuse an opening that would not end."""
        if self.steps > state.max_steps:
            raise UnsupportedModelError(
                f"opening_steps is {self.steps}, but training ends after {state.max_steps} steps, before the segments "
                "are open; expected at most as many"
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Set the bias of the step."""
        if self.factors is not None:
            self.factors.grad = None  # transformers does this for the model's own parameters
        set_opening(self.model, self.bias(state.global_step))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Leave the plain rule."""
        set_opening(self.model, None)
