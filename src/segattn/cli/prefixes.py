"""The prefix cache of a command: kept in memory, or in a file from one run to the next."""

from pathlib import Path
from typing import TYPE_CHECKING

from segattn.cli.loading import ChatModel
from segattn.errors import UnsupportedModelError

if TYPE_CHECKING:
    from segattn.generation import PrefixCache

__all__ = ["FILE_HELP", "MAX_BYTES", "open_prefixes", "summary"]

FILE_HELP = "Keep the keys of prompts and answers in this file, for the next run with the same model."

MAX_BYTES = 2 * 2**30
"""What the keys and values of conversations may take, on the model's device and in a file."""


def open_prefixes(chat_model: ChatModel, file: Path | None) -> "PrefixCache | None":
    """Make the prefix cache of a model, with what a file of an earlier run holds.

    Args:
        chat_model: the loaded model.
        file: where prefixes are kept; it need not exist yet. None keeps them in memory.

    Returns:
        None for a model whose keys cannot be shared, if no file was asked for.

    Raises:
        PrefixCacheError: the file is damaged, or was saved for another model.
        UnsupportedModelError: a file was asked for, and the model's keys cannot be shared.
    """
    from segattn.generation import PrefixCache

    if file is not None and file.exists():
        return PrefixCache.load(file, chat_model.model, max_bytes=MAX_BYTES)
    try:
        return PrefixCache(chat_model.model, max_bytes=MAX_BYTES)
    except UnsupportedModelError:
        if file is not None:
            raise
        return None


def summary(prefixes: "PrefixCache | None") -> str:
    """Return a line on what a cache holds and how much of the prompts it gave."""
    if prefixes is None:
        return "Prefix cache: off, for this model's keys cannot be shared."
    counts = prefixes.stats()
    return (
        f"Prefix cache: {counts.hit_rate:.0%} of {counts.tokens_reused + counts.tokens_computed} prompt tokens reused; "
        f"{counts.entries} pieces, {counts.bytes / 1e6:.1f} MB."
    )
