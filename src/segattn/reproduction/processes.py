"""Several processes of one launch (`accelerate launch`) at one sweep: they agree on the next cell, share the items."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["agreed", "is_first_process", "joined", "own_share", "write_json"]

Value = TypeVar("Value")

# The lists of an evaluation that have one entry for each item.
_PER_ITEM = ("ids", "lengths", "correct", "losses")


def _count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process writes files and speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def write_json(file: Path, content: Any) -> None:
    """Write a file of JSON in the first process; it appears when it is complete."""
    if not is_first_process():
        return
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
    partial.replace(file)


def agreed(decide: Callable[[], Value]) -> Value:
    """Return what the first process decides, in every process: files may change while the others look at them.

    An error of the first process is raised in all of them.
    """
    if _count() == 1:
        return decide()
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState()  # begins the process group
    decided: list[Any] = [None, None]
    if is_first_process():
        try:
            decided[0] = decide()
        except Exception as error:  # all processes must end, whatever it is
            decided[1] = error
    broadcast_object_list(decided)
    if decided[1] is not None:
        raise decided[1]
    value: Value = decided[0]
    return value


def own_share(items: Sequence[Value]) -> list[Value]:
    """Return the items that this process scores: every n-th one; all of them where there are fewer than processes."""
    if len(items) < _count():
        return list(items)
    return list(items[int(os.environ.get("RANK", "0")) :: _count()])


def joined(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return the evaluation of all items from those of `own_share`, in every process, in the order of the items."""
    if _count() == 1:
        return evaluation
    from accelerate.utils import gather_object

    shares: list[dict[str, Any]] = gather_object([evaluation])
    if shares[0]["ids"] == shares[-1]["ids"]:
        return shares[0]
    whole = dict(shares[0])
    for name in _PER_ITEM:
        if whole[name] is not None:
            total = sum(len(share[name]) for share in shares)
            whole[name] = [shares[place % len(shares)][name][place // len(shares)] for place in range(total)]
    chances = [(share["chance"], len(share["ids"])) for share in shares]
    if whole["chance"] is not None:
        whole["chance"] = sum(chance * count for chance, count in chances) / len(whole["ids"])
    return whole
