"""A loss or gradient that is NaN or infinite: seen before the weights change, with the batch to look at."""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segattn.training.errors import NotFiniteError

__all__ = ["BATCH_FILE", "FiniteWatch"]

logger = logging.getLogger(__name__)

BATCH_FILE = "not_finite_batch.json"

_COLUMNS = ("input_ids", "labels", "segment_ids")


class FiniteWatch:
    """Keeps the batches of an optimizer step and their losses, and looks at them once, when the gradients are done.

    The device is asked once a step, for losses and gradient norm together.
    """

    def __init__(self) -> None:
        self._batches: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []

    def add(self, inputs: dict[str, Any], loss: Tensor) -> None:
        """Remember a batch and its loss until the optimizer's step."""
        self._batches.append(inputs)
        self._losses.append(loss.detach().float())

    def check(self, trainer: Any, norm: Any) -> None:
        """Forget the batches of a step whose losses and gradient norm are finite.

        Args:
            trainer: a `SegmentSFTTrainer`, before its optimizer's step.
            norm: of all gradients, before clipping. Under --fp16 it may be infinite: its scaler leaves such steps out.

        Raises:
            NotFiniteError: after writing not_finite_batch.json to the trainer's output_dir.
        """
        batches, losses = self._batches, self._losses
        self._batches, self._losses = [], []
        values = [] if norm is None or trainer.args.fp16 else [_tensor(norm)]
        if losses or values:
            device = losses[0].device if losses else values[0].device
            found = torch.stack([value.to(device).reshape(()) for value in [*losses, *values]]).tolist()
            if not all(map(math.isfinite, found)):
                self._stop(trainer, batches, found[: len(losses)], found[len(losses) :])

    def _stop(self, trainer: Any, batches: list[dict[str, Any]], losses: list[float], norms: list[float]) -> None:
        bad = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
        step = trainer.state.global_step + 1
        if bad:
            value, what = losses[bad[0]], "the loss"
            if len(batches) > 1:
                what += f" of batch {bad[0] + 1} of {len(batches)}"
        else:
            value, what = norms[0], "the gradient norm"
        content = {
            "what": what,
            "value": repr(value),
            "step": step,
            "epoch": trainer.state.epoch,
            "learning_rate": trainer._get_learning_rate(),
            "gradient_norm": repr(norms[0]) if norms else None,
            # Gradients are of all batches of the step: any of them may be the cause.
            "batches": [
                {"batch": number + 1, "loss": repr(losses[number]), "rows": _rows(trainer, batches[number])}
                for number in (bad or range(len(batches)))
            ],
        }
        file = _write(trainer, content)
        raise NotFiniteError(
            f"{what} of step {step} is {value}; the batch is in {file}, and the weights are those of step {step - 1}. "
            "Look at its rows; or try a lower --learning_rate, a longer --warmup_steps, --max_grad_norm 1, or "
            "--dtype float32 --bf16 false"
        )


def _write(trainer: Any, content: dict[str, Any]) -> Path:
    rank = trainer.args.process_index
    name = BATCH_FILE if rank == 0 else BATCH_FILE.replace(".json", f"-process{rank}.json")
    file = Path(trainer.args.output_dir or ".") / name
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{name}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(file)
    return file


def _rows(trainer: Any, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Each conversation of a batch: its place in the data, its own loss, its text and its tokens."""
    rows: list[dict[str, Any]] = []
    for piece in _conversations(inputs):
        lists = {name: piece[name][0].tolist() for name in _COLUMNS if name in piece}
        rows.append({"loss": _loss(trainer, piece), "text": _text(trainer, lists["input_ids"]), **lists})
    wanted = [tuple(row["input_ids"]) for row in rows]
    places = _places(trainer, wanted)
    return [{"dataset_row": places.get(ids), **row} for ids, row in zip(wanted, rows, strict=True)]


def _conversations(inputs: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Batches of one conversation each, without its padding."""
    ids = inputs["input_ids"]
    columns = {name: value for name, value in inputs.items() if torch.is_tensor(value) and value.shape == ids.shape}
    positions = columns.get("position_ids")
    for row in range(len(ids)):
        if positions is not None:
            starts = (positions[row] == 0).nonzero().flatten().tolist()
            spans = list(zip(starts, [*starts[1:], ids.shape[1]], strict=True))
        else:
            mask = columns.get("attention_mask")
            spans = [(0, int(mask[row].sum()) if mask is not None else ids.shape[1])]
        for start, end in spans:
            yield {name: value[row : row + 1, start:end] for name, value in columns.items()}


def _loss(trainer: Any, piece: dict[str, Tensor]) -> str | None:
    """The loss of one conversation, without dropout; None where it cannot be computed alone."""
    model = trainer.model
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), trainer.compute_loss_context_manager():
            return repr(float(trainer.compute_loss(model, trainer._prepare_inputs(piece))))
    except Exception as error:
        logger.warning("the loss of a row could not be computed alone: %s", error)
        return None
    finally:
        model.train(was_training)


def _text(trainer: Any, ids: list[int]) -> str | None:
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    return tokenizer.decode(ids) if hasattr(tokenizer, "decode") else None


def _places(trainer: Any, wanted: list[tuple[int, ...]]) -> dict[tuple[int, ...], int]:
    """The numbers of rows in the training data, by their tokens; those inside of packed rows are not found."""
    data = trainer.train_dataset
    if not hasattr(data, "__len__") or "input_ids" not in (getattr(data, "column_names", None) or ()):
        return {}
    found: dict[tuple[int, ...], int] = {}
    number = 0
    for batch in data.select_columns(["input_ids"]).iter(batch_size=1000):
        for ids in map(tuple, batch["input_ids"]):
            if ids in wanted:
                found.setdefault(ids, number)
            number += 1
    return found


def _tensor(norm: Any) -> Tensor:
    if hasattr(norm, "full_tensor"):  # sharded by FSDP
        norm = norm.full_tensor()
    return norm.detach().float() if torch.is_tensor(norm) else torch.tensor(float(norm))
