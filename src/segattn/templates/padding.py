"""Pad rows of token ids as a tokenizer does, on its own side and with its own token."""

from collections.abc import Mapping, Sequence
from typing import Any

from segattn.errors import TemplateError

__all__ = ["pad_rows"]

_TENSORS = (None, "pt", "np")
_OPTIONS = ("padding_side", "pad_to_multiple_of")


def pad_rows(
    tokenizer: Any,
    rows: Sequence[list[int]],
    padding: bool | str,
    max_length: int | None,
    options: Mapping[str, Any],
    return_tensors: str | None,
) -> tuple[list[list[int]], list[list[int]]]:
    """Return (input ids, attention mask), padded as transformers' `padding` argument says.

    Args:
        tokenizer: gives the padding side, token and the maximal length.
        rows: the token ids.
        padding: False or "do_not_pad", True or "longest", "max_length".
        max_length: for "max_length"; default the tokenizer's own. Longer rows stay whole.
        options: `padding_side`, `pad_to_multiple_of`.
        return_tensors: what the rows will become; a tensor needs rows of one length.

    Raises:
        TemplateError: unknown arguments, no padding token, or rows that make no tensor.
    """
    unknown = sorted(set(options) - set(_OPTIONS))
    padding = getattr(padding, "value", padding)  # transformers' PaddingStrategy
    return_tensors = getattr(return_tensors, "value", return_tensors)
    if unknown or padding not in (False, True, "do_not_pad", "longest", "max_length") or return_tensors not in _TENSORS:
        raise TemplateError(
            f"got padding={padding!r}, return_tensors={return_tensors!r}, tokenizer_kwargs={dict(options)!r}; expected "
            "padding False, True, 'longest' or 'max_length', return_tensors None, 'pt' or 'np', and in "
            f"tokenizer_kwargs only {' and '.join(_OPTIONS)}"
        )
    length = _target(tokenizer, rows, padding, max_length, options.get("pad_to_multiple_of"))
    token, side = tokenizer.pad_token_id, options.get("padding_side") or tokenizer.padding_side
    if token is None and any(len(row) < length for row in rows):
        raise TemplateError(
            f"{type(tokenizer).__name__} has no padding token; expected one. Set it before padding, e.g. "
            "tokenizer.pad_token = tokenizer.eos_token"
        )
    padded, mask = [], []
    for row in rows:
        missing = max(length - len(row), 0)
        fill, zeros, ones = [token] * missing, [0] * missing, [1] * len(row)
        padded.append([*fill, *row] if side == "left" else [*row, *fill])
        mask.append([*zeros, *ones] if side == "left" else [*ones, *zeros])
    if return_tensors is not None and len({len(row) for row in padded}) > 1:
        raise TemplateError(
            f"the chats have {sorted(len(row) for row in padded)} tokens, which makes no tensor; expected one length. "
            "Pass padding=True"
        )
    return padded, mask


def _target(
    tokenizer: Any, rows: Sequence[list[int]], padding: bool | str, max_length: int | None, multiple: int | None
) -> int:
    """The length to pad to, 0 for none."""
    if padding in (False, "do_not_pad"):
        return 0
    length = max(len(row) for row in rows)
    if padding == "max_length":
        length = max_length if max_length is not None else int(tokenizer.model_max_length)
        if length > 10**9:
            raise TemplateError(
                "padding='max_length' needs a length, and this tokenizer has no model_max_length; pass max_length"
            )
    return -(-length // multiple) * multiple if multiple else length
