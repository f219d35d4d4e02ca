"""Held-out accuracy of a model, per number of steps, under any of the masks."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import segattn
from segattn.modeling import set_opening
from segattn.segments import IGNORED_LABEL

from .encoding import Rows
from .tables import ASKED, HOPS

__all__ = ["Score", "measure"]


@dataclass(frozen=True)
class Score:
    """Results of one number of steps.

    Attributes:
        accuracy: the share of answer entries that are the likeliest token, given the entries before them.
        whole: the share of answers with every entry right: what greedy generation gets right.
        loss: nats per entry.
    """

    accuracy: float
    whole: float
    loss: float


def measure(model: Any, segmenter: segattn.Segmenter, policy: str, rows: Rows) -> dict[str, dict[str, float]]:
    """Return the scores of a model that runs with the segments of `policy`.

    Segments that are being opened are open meanwhile.

    Returns:
        The name of each number of steps -> the fields of a `Score`.
    """
    was_training = model.training
    model.eval()
    set_opening(model, None)
    with torch.no_grad():
        logits = model(
            input_ids=rows.input_ids,
            attention_mask=torch.ones_like(rows.input_ids),
            segment_ids=segmenter.with_policy(policy).segment_ids(rows.input_ids),
        ).logits
    model.train(was_training)
    answers = rows.labels[:, 1:] != IGNORED_LABEL
    # The end marker is left out: it is always in the same place.
    log_probs = logits[:, :-1][answers].log_softmax(-1).view(len(rows.hops), ASKED + 1, -1)[:, :ASKED]
    wanted = rows.labels[:, 1:][answers].view(len(rows.hops), ASKED + 1)[:, :ASKED]
    right = (log_probs.argmax(-1) == wanted).double()
    losses = -log_probs.gather(-1, wanted[..., None]).squeeze(-1).double()
    return {
        name: asdict(_score(right[rows.hops == number], losses[rows.hops == number])) for number, name in HOPS.items()
    }


def _score(right: Tensor, losses: Tensor) -> Score:
    return Score(*(round(float(value), 5) for value in (right.mean(), right.prod(-1).mean(), losses.mean())))
