"""Pictures of masks and results. Drawn once, readable on light and dark pages.

Each function returns a matplotlib Figure; `save` writes it to a file, `svg` gives inline SVG for a page.
"""

import functools
import html
import io
import math
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from segattn.errors import SegmentError
from segattn.masks import segment_mask
from segattn.reports.smoothing import Smoothed
from segattn.segments import as_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "draw_learning_curves",
    "draw_mask",
    "draw_mismatch_matrix",
    "draw_token_rates",
    "draw_training",
    "label_tokens",
    "panels",
    "save",
    "svg",
]

CAUSAL_COLOR, AHEAD_COLOR, BLOCKED_COLOR = "#3b7dd8", "#e8912d", "#8885"
ARM_COLORS = {"causal": CAUSAL_COLOR, "segments": AHEAD_COLOR}
# Text and frames take this color in files, and the page's own text color in inline SVG.
INK = "#3a3f47"
MOST_LABELS = 80
# Beyond this many tokens a picture has more cells than a screen has points.
MOST_TOKENS = 2048


def draw_mask(
    segment_ids: Any, tokens: Sequence[str] | None = None, path: str | os.PathLike[str] | None = None
) -> "Figure":
    """Draw who may attend to whom in one row.

    Args:
        segment_ids: one row, a sequence of ints or a tensor (length,) or (1, length).
        tokens: the text of each token, for the axes.
        path: also save the picture there; the suffix decides the format (.svg, .png, .pdf).

    Raises:
        SegmentError: not one row of valid ids, too many tokens, or another number of texts than of ids.
    """
    ids = as_rows(torch.as_tensor(segment_ids))
    length = ids.shape[1]
    if ids.shape[0] != 1 or not 0 < length <= MOST_TOKENS:
        raise SegmentError(f"segment_ids has shape {tuple(ids.shape)}; expected one row of 1 to {MOST_TOKENS} tokens")
    if tokens is not None and len(tokens) != length:
        raise SegmentError(f"there are {len(tokens)} token texts for {length} segment ids; expected one for each")
    allowed = segment_mask(ids)[0, 0]
    # 0 blocked, 1 allowed under causal attention too, 2 allowed by the segment alone
    cells = allowed.int() + torch.triu(allowed, 1).int()
    figure, axes = _figure(*_mask_size(length, tokens))
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colors = (BLOCKED_COLOR, CAUSAL_COLOR, AHEAD_COLOR)
    # Rasterized: in SVG each cell would be a path, 1.7 MB for 80 tokens and 126 MB for 800.
    axes.pcolormesh(cells.numpy(), cmap=ListedColormap(colors), vmin=0, vmax=2, linewidth=0, rasterized=True)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    label_tokens(axes, length, tokens)
    axes.set_xlabel("key", color=INK)
    axes.set_ylabel("query", color=INK)
    names = ("may not attend", "may attend, as in causal attention", "may attend, ahead in its segment")
    axes.legend(
        handles=[Patch(color=color, label=name) for color, name in zip(colors[::-1], names[::-1], strict=True)],
        loc="upper right", frameon=False, labelcolor=INK, fontsize=8,
    )  # fmt: skip
    if path is not None:
        save(figure, path)
    return figure


def _mask_size(length: int, tokens: Sequence[str] | None) -> tuple[float, float]:
    side = min(max(3.5, 0.16 * min(length, MOST_LABELS) + 1.2), 12.0)
    return (side + (1.0 if tokens else 0.0), side + (0.8 if tokens else 0.0))


def label_tokens(axes: Any, length: int, tokens: Sequence[str] | None, size: float = 8, first: float = 0.5) -> None:
    """Write tokens, or their numbers, along both axes of a square picture.

    Args:
        axes: of the picture.
        length: how many tokens.
        tokens: their texts; None for numbers.
        size: of the letters, in points.
        first: where the middle of the first cell lies.
    """
    step = -(-length // MOST_LABELS)
    places = list(range(0, length, step))
    names = [str(place) if tokens is None else _visible(tokens[place]) for place in places]
    if tokens is None and length > 20:
        places, names = places[::10], names[::10]
    centers = [place + first for place in places]
    # Without math, or two dollars in a token would be read as a formula.
    axes.set_xticks(centers, names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(centers, names, fontsize=size, parse_math=False)


def _visible(token: str) -> str:
    """Make white space seen, keep a label short, and put a box for what the font cannot draw (as fonts do)."""
    text = token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·")
    text = "".join(char if char.isprintable() and ord(char) in _drawable() else "□" for char in text)
    return text if len(text) <= 14 else text[:13] + "…"


@functools.cache
def _drawable() -> frozenset[int]:
    """The characters of the font that matplotlib draws labels in."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def draw_learning_curves(curves: Mapping[str, Sequence[Mapping[str, Any]]], chance: float | None = None) -> "Figure":
    """Draw held-out answer loss against steps, one line per arm, on a logarithmic scale.

    Args:
        curves: arm -> points with "step", "loss" and, while segments open, "opening_loss" (else None).
        chance: a loss to mark, e.g. that of guessing among the answers; None for no mark.
    """
    figure, axes = _figure(6.4, 3.6)
    for arm, points in curves.items():
        color = ARM_COLORS.get(arm)
        axes.plot([p["step"] for p in points], [p["loss"] for p in points], marker="o", ms=4, color=color, label=arm)
        opening = [p for p in points if p.get("opening_loss") is not None]
        if opening:
            axes.plot(
                [p["step"] for p in opening], [p["opening_loss"] for p in opening], marker=".", ls=":", color=color,
                label=f"{arm}, under the bias of the moment",
            )  # fmt: skip
    if chance is not None:
        axes.axhline(chance, color=INK, lw=0.8, ls="--")
        axes.annotate("guessing", (0, chance), textcoords="offset points", xytext=(4, 4), fontsize=8, color=INK)
    axes.set_yscale("log")
    axes.set_xlabel("optimizer steps", color=INK)
    axes.set_ylabel("held-out answer loss (nats per token)", color=INK)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure


def draw_training(
    losses: Sequence[tuple[int, float]],
    held_out: Mapping[str, Sequence[tuple[int, float]]],
    measure: str = "loss (nats per answer token)",
) -> "Figure":
    """Draw the curves of one run: its training loss, raw and smoothed, and the losses on held-out data.

    Args:
        losses: (step, training loss).
        held_out: name -> (step, loss); the first one is the main one, the others are dotted.
        measure: the label of the axis, which is logarithmic where all values are positive. Values that are not finite
            leave a gap.
    """
    figure, axes = _figure(6.4, 3.6)
    steps = [step for step, _ in losses]
    values = [loss for _, loss in losses]
    smoothed = Smoothed()
    axes.plot(steps, _finite(values), color=CAUSAL_COLOR, lw=1, alpha=0.35, label="training")
    axes.plot(steps, _finite([smoothed.add(value) for value in values]), color=CAUSAL_COLOR, label="training, smoothed")
    for number, (name, points) in enumerate(held_out.items()):
        marks: dict[str, Any] = {"marker": "o", "ms": 4} if number == 0 else {"marker": ".", "ls": ":"}
        color = AHEAD_COLOR if number < len(held_out) - 1 or number == 0 else INK
        axes.plot([p[0] for p in points], _finite([p[1] for p in points]), color=color, label=name, **marks)
    every = [*values, *(loss for points in held_out.values() for _, loss in points)]
    if all(value > 0 for value in every if math.isfinite(value)):
        axes.set_yscale("log")
    axes.set_xlabel("optimizer steps", color=INK)
    axes.set_ylabel(measure, color=INK)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure


def draw_token_rates(rates: Sequence[tuple[int, float, float]]) -> "Figure":
    """Draw tokens per second against steps.

    Args:
        rates: (step, tokens without padding a second, tokens with a label a second).
    """
    figure, axes = _figure(6.4, 2.2)
    steps = [rate[0] for rate in rates]
    axes.plot(steps, _finite([rate[1] for rate in rates]), color=CAUSAL_COLOR, label="without padding")
    axes.plot(steps, _finite([rate[2] for rate in rates]), color=AHEAD_COLOR, label="of answers")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("optimizer steps", color=INK)
    axes.set_ylabel("tokens per second", color=INK)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure


def _finite(values: Sequence[float]) -> list[float]:
    """The values, with a gap for what is not finite."""
    return [value if math.isfinite(value) else math.nan for value in values]


def draw_mismatch_matrix(matrix: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Draw accuracies: how a model was tuned (rows) against the mask it is run under (columns).

    Args:
        matrix: row -> column -> accuracy, NaN for an empty cell; the row "base" or "untuned" is the model as it is.
    """
    rows = list(matrix)
    columns = list(matrix[rows[0]])
    figure, axes = _figure(1.6 + 1.4 * len(columns), 0.8 + 0.6 * len(rows))
    values = [[matrix[row][column] for column in columns] for row in rows]
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if math.isnan(value):
                continue
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", color="#ffffff" if value > 0.5 else "#1b1f24")
    axes.set_xticks(range(len(columns)), [f"run {column}" for column in columns])
    axes.set_yticks(range(len(rows)), ["not tuned" if row in ("base", "untuned") else f"tuned {row}" for row in rows])
    return figure


def _figure(width: float, height: float) -> tuple["Figure", Any]:
    figure, (axes,) = panels(width, height)
    return figure, axes


def panels(
    width: float, height: float, columns: int = 1, rows: int = 1, shared: bool = False
) -> tuple["Figure", list[Any]]:
    """Return a figure without pyplot's global state, transparent, with frames and ticks in INK.

    Args:
        width: of the figure, in inches.
        height: of the figure, in inches.
        columns: how many panels side by side.
        rows: how many below one another; the panels are returned row by row.
        shared: whether they share the vertical axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    every = list(figure.subplots(rows, columns, squeeze=False, sharey=shared).flat)
    for axes in every:
        axes.patch.set_alpha(0)
        axes.tick_params(colors=INK, which="both")
        for spine in axes.spines.values():
            spine.set_color(INK)
    return figure, every


def save(figure: "Figure", path: str | os.PathLike[str]) -> Path:
    """Write a picture on a white ground; it appears when it is complete."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        figure.savefig(partial, dpi=160, facecolor="white")
    except ValueError as error:
        raise SegmentError(f"{target} cannot be written: {error}") from error
    partial.replace(target)
    return target


def svg(figure: "Figure", description: str) -> str:
    """Return a figure as an inline SVG element whose text and frames take the page's text color.

    Args:
        figure: its ids become unique, so that a page can hold several.
        description: what a screen reader says in its place.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "segattn"}):
        figure.savefig(buffer, format="svg", transparent=True, dpi=200, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    prefix = f"p{zlib.crc32(text.encode()):08x}-"
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)
