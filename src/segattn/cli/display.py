"""Segments on a terminal: a table, the tokens in colour, and the mask in characters."""

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Run", "coloured_tokens", "mask_picture", "runs_of", "runs_table"]

# Backgrounds that a dark and a light terminal both show; segments take them in turn.
_COLOURS = ("blue", "magenta", "green", "dark_orange3", "cyan", "red")
_PREVIEW = 44


@dataclass(frozen=True)
class Run:
    """Tokens `start` to `end` (exclusive) of a row that share a segment id; -1 is causal."""

    segment: int
    start: int
    end: int
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the number of tokens, for JSON."""
        return {**asdict(self), "tokens": self.end - self.start}


def runs_of(ids: list[int], segment_ids: list[int], tokenizer: Any) -> list[Run]:
    """Split a row into its segments and the causal runs between them.

    Args:
        ids: token ids of one row.
        segment_ids: as many segment ids.
        tokenizer: decodes the tokens.
    """
    edges = [i for i in range(len(ids)) if i == 0 or segment_ids[i] != segment_ids[i - 1]]
    return [
        Run(segment_ids[start], start, end, tokenizer.decode(ids[start:end]))
        for start, end in zip(edges, [*edges[1:], len(ids)], strict=True)
    ]


def runs_table(runs: list[Run]) -> str:
    """Return the runs as an aligned text table."""
    lines = [f"{'segment':>8} {'start':>6} {'end':>6} {'tokens':>6}  text"]
    for run in runs:
        name = "causal" if run.segment < 0 else str(run.segment)
        text = visible(run.text)
        if len(text) > _PREVIEW:
            half = (_PREVIEW - 1) // 2
            text = f"{text[:half]}…{text[-half:]}"
        lines.append(f"{name:>8} {run.start:>6} {run.end:>6} {run.end - run.start:>6}  {text}")
    return "\n".join(lines)


def visible(text: str) -> str:
    """Return text on one line, with control characters shown: nothing in it can steer the terminal."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in shown)


def coloured_tokens(ids: list[int], segment_ids: list[int], tokenizer: Any) -> Any:
    """Return the tokens as rich text, each segment on its own background; causal tokens have none."""
    from rich.text import Text

    text = Text()
    for token, segment in zip(ids, segment_ids, strict=True):
        style = "" if segment < 0 else f"white on {_COLOURS[segment % len(_COLOURS)]}"
        piece = tokenizer.decode([token])
        text.append(visible(piece), style=style)
        if "\n" in piece:
            text.append("\n")
    return text


def mask_picture(segment_ids: list[int]) -> str:
    """Draw who may attend to whom: one line per query, one character per key.

    `█` a key ahead that its segment opens, `▒` a key at or before the query, `·` a key that is hidden.
    """
    import torch

    from segattn import segment_mask

    allowed = segment_mask(torch.tensor([segment_ids]))[0, 0].tolist()
    return "\n".join(
        "".join("·" if not allowed[i][j] else "█" if j > i else "▒" for j in range(len(segment_ids)))
        for i in range(len(segment_ids))
    )
