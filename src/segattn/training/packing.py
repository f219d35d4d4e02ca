"""Several conversations in one row, each for itself: TRL's packing, with segment ids that stay apart.

A packed row has no attention mask. Its `position_ids` begin at 0 again with each conversation; from that transformers,
and so the enabled model, keeps the conversations apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from segattn.data import DataError
from segattn.errors import SegmentAttentionError, UnsupportedModelError
from segattn.segments import CAUSAL, IGNORED_LABEL

__all__ = ["LENGTHS", "check_documents_apart", "flatten", "pack"]

COLUMNS = ("input_ids", "labels", "segment_ids")

LENGTHS = "seq_lengths"
"""The column in which TRL keeps the lengths of the documents of a packed row."""


def pack(dataset: Any, max_length: int | None, *, quiet: bool = False) -> Any:
    """Pack rows into as few as possible (best fit decreasing, TRL's "bfd"); none is split.

    Args:
        dataset: a datasets.Dataset with input_ids, labels and segment_ids.
        max_length: the most tokens of a packed row.
        quiet: show no progress bar.

    Returns:
        A datasets.Dataset with these columns and seq_lengths; no segment id occurs in two documents.

    Raises:
        DataError: no Dataset, no max_length, or a row that is longer: TRL would cut it.
    """
    from datasets import Dataset, disable_progress_bars, enable_progress_bars, is_progress_bar_enabled
    from trl import pack_dataset

    if not isinstance(dataset, Dataset):
        raise DataError(f"packing got a {type(dataset).__name__}; expected a datasets.Dataset, which can be sorted")
    if max_length is None:
        raise DataError("packing needs max_length, the most tokens of a packed row; set --max_length")
    columns: dict[str, list[list[int]]] = {name: dataset[:][name] for name in COLUMNS}
    over = next((number for number, ids in enumerate(columns["input_ids"]) if len(ids) > max_length), None)
    if over is not None:
        raise DataError(
            f"row {over} has {len(columns['input_ids'][over])} tokens and cannot be packed into rows of {max_length}; "
            "raise --max_length, or choose with --too_long what becomes of long samples"
        )
    columns["segment_ids"] = _apart(columns["segment_ids"])
    shown = is_progress_bar_enabled()
    try:
        if quiet:
            disable_progress_bars()
        return pack_dataset(Dataset.from_dict(columns), max_length, "bfd", {"desc": "Packing"})
    finally:
        if shown:
            enable_progress_bars()


def _apart(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Segment ids of several rows, numbered on from row to row."""
    apart, first = [], 0
    for row in rows:
        apart.append([CAUSAL if number == CAUSAL else first + number for number in row])
        first += max(row, default=CAUSAL) + 1
    return apart


def flatten(rows: Sequence[Mapping[str, Sequence[int]]], pad_token_id: int, multiple_of: int = 1) -> dict[str, Tensor]:
    """Join rows, packed or not, into a single one without padding.

    Args:
        rows: of input_ids, labels and segment_ids; of several documents where there is a seq_lengths.
        pad_token_id: fills up to a multiple, as a last document without labels.
        multiple_of: the length is rounded up to a multiple of this.

    Returns:
        input_ids, labels, segment_ids and position_ids, int64 (1, length). Segments of different rows have different
        ids; the first token of a document has no label, since the one before it belongs to another.

    Raises:
        ValueError: the columns, or the documents, of a row differ in length.
    """
    joined: dict[str, list[int]] = {name: [] for name in (*COLUMNS, "position_ids")}
    free = 0
    for row in rows:
        size = len(row["input_ids"])
        lengths = list(row.get(LENGTHS) or [size])
        found = {name: len(row[name]) for name in COLUMNS} | {LENGTHS: sum(lengths)}
        if set(found.values()) != {size}:
            raise ValueError(f"the columns of a row differ in length: {found}")
        numbers: dict[int, int] = {CAUSAL: CAUSAL}
        for number in row["segment_ids"]:
            numbers.setdefault(number, free + len(numbers) - 1)
        free += len(numbers) - 1
        positions = [position for length in lengths for position in range(length)]
        labels = (IGNORED_LABEL if at == 0 else label for at, label in zip(positions, row["labels"], strict=True))
        joined["input_ids"] += row["input_ids"]
        joined["labels"] += labels
        joined["segment_ids"] += [numbers[number] for number in row["segment_ids"]]
        joined["position_ids"] += positions
    missing = -len(joined["input_ids"]) % multiple_of
    fill = {"input_ids": pad_token_id, "labels": IGNORED_LABEL, "segment_ids": CAUSAL}
    for name, value in fill.items():
        joined[name] += [value] * missing
    joined["position_ids"] += range(missing)
    return {name: torch.tensor([values], dtype=torch.int64) for name, values in joined.items()}


@torch.no_grad()
def check_documents_apart(model: Any) -> None:
    """Run two short documents as one row: the second must not depend on the first, and come out as it does alone.

    With segments and without. Rounding is allowed for, which in bfloat16 can change single tokens a lot.

    Args:
        model: an enabled causal language model, on its device.

    Raises:
        UnsupportedModelError: what the model does between its tokens besides attention (recurrent or convolution
            layers, absolute positions) mixes the documents, or its masks do not look at positions.
    """
    training, device = model.training, next(model.parameters()).device
    most = min(model.config.get_text_config().vocab_size, 200)
    tokens = torch.tensor([[3 + 7 * place % (most - 4) for place in range(22)]], device=device)
    others = torch.cat([tokens[:, :12] + 1, tokens[:, 12:]], dim=1)
    positions = torch.tensor([[*range(12), *range(10)]], device=device)
    model.eval()
    try:
        for segments in ([0] * 6 + [1] * 4 + [-1] * 2 + [2] * 6 + [-1] * 4, [-1] * 22):
            ids = torch.tensor([segments], device=device)
            packed = _logits(model, tokens, ids, positions)[:, 12:]
            after_others = _logits(model, others, ids, positions)[:, 12:]
            alone = _logits(model, tokens[:, 12:], ids[:, 12:], positions[:, 12:])
            allowed = torch.finfo(alone.dtype).eps ** 0.5
            _refuse_if(model, "after another one", _difference(after_others, packed), allowed)
            _refuse_if(model, "alone", _difference(packed, alone), allowed)
    finally:
        model.train(training)


def _difference(logits: Tensor, others: Tensor) -> float:
    """How far the logits (1, T, V) of the usual token lie apart, as a share of their size."""
    apart = (logits.float() - others.float()).norm(dim=-1) / others.float().norm(dim=-1)
    return float(apart.median())


def _refuse_if(model: Any, where: str, difference: float, allowed: float) -> None:
    if not difference <= allowed:
        raise UnsupportedModelError(
            f"{type(model).__name__} gives a document other outputs in a packed row than {where} (they differ by "
            f"{difference:.2g} of their size, allowed {allowed:.2g}); train without --packing and --padding_free"
        )


def _logits(model: Any, tokens: Tensor, segment_ids: Tensor, position_ids: Tensor) -> Tensor:
    try:
        output = model(input_ids=tokens, segment_ids=segment_ids, position_ids=position_ids, use_cache=False)
    except (SegmentAttentionError, TypeError) as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot run packed documents: {error}. Train without --packing and --padding_free"
        ) from error
    logits: Tensor = output.logits
    return logits
