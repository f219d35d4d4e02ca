"""Pictures of several arms over several seeds; `segattn.reports.pictures` saves them and puts them into pages."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from segattn.reports.pictures import ARM_COLORS, INK, label_tokens, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_attention_maps", "draw_bands", "draw_head_shares", "draw_lengths"]

Interval = Mapping[str, float]

# For arms that are neither causal nor segments: told apart from both, and from one another, on light and dark grounds.
_COLORS = ("#3a9d5d", "#a06bc4", "#d1495b", "#2a9d9d", "#d46fb0", "#a0764a", "#8a8f98")
_MARKERS = "os^Dv*PX"
# Inches: wider pictures are scaled down on a page until nobody can read them.
_WIDEST = 12.0


def _look(arm: str, arms: Sequence[str]) -> dict[str, Any]:
    """Color and marker of an arm."""
    others = [one for one in arms if one not in ARM_COLORS]
    color = ARM_COLORS.get(arm) or _COLORS[others.index(arm) % len(_COLORS)]
    return {"color": color, "marker": _MARKERS[list(arms).index(arm) % len(_MARKERS)]}


def draw_bands(
    curves: Mapping[str, Mapping[str, Sequence[float]]], measure: str, arms: Sequence[str], logarithmic: bool = False
) -> "Figure":
    """Draw a line for each arm, the mean of its seeds, in a band from the lowest to the highest of them.

    Args:
        curves: arm -> "steps", "mean", "low", "high".
        measure: the label of the vertical axis.
        arms: all that the page shows, so that each has one color in every picture.
        logarithmic: the scale of the vertical axis, where all values are positive.
    """
    figure, (axes,) = panels(6.4, 3.6)
    for arm, curve in curves.items():
        look = _look(arm, arms)
        axes.plot(curve["steps"], curve["mean"], ms=4, label=arm, **look)
        axes.fill_between(curve["steps"], curve["low"], curve["high"], color=look["color"], alpha=0.18, lw=0)
    if logarithmic and all(value > 0 for curve in curves.values() for value in curve["low"]):
        axes.set_yscale("log")
    axes.set_xlabel("optimizer steps", color=INK)
    axes.set_ylabel(measure, color=INK)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure


def draw_lengths(
    accuracies: Mapping[str, Sequence[tuple[float, Interval]]],
    differences: Mapping[str, Sequence[tuple[float, Interval]]],
    cut_offs: Sequence[int],
    arms: Sequence[str],
) -> "Figure":
    """Draw accuracy (left) and its difference from causal training (right) against the length of the prompt.

    Args:
        accuracies: arm -> (median length of a stratum in tokens, "value", "low", "high").
        differences: the same; where it is empty, there is no right panel.
        cut_offs: lengths at which training samples were cut: dashed.
        arms: all that the page shows.
    """
    parts = [accuracies, differences] if differences else [accuracies]
    figure, every = panels(5.3 * len(parts), 3.4, len(parts))
    for axes, lines in zip(every, parts, strict=True):
        for number, (arm, points) in enumerate(lines.items()):
            # Beside one another, or the intervals of arms would hide each other.
            places = [length * 1.025 ** (number - (len(lines) - 1) / 2) for length, _ in points]
            values = [interval["value"] for _, interval in points]
            reach = [
                [max(0.0, interval["value"] - interval["low"]) for _, interval in points],
                [max(0.0, interval["high"] - interval["value"]) for _, interval in points],
            ]
            axes.errorbar(places, values, yerr=reach, ms=4, lw=1.2, elinewidth=0.9, label=arm, **_look(arm, arms))
        for cut in cut_offs:
            axes.axvline(cut, color=INK, lw=0.9, ls="--")
            axes.annotate(
                "cut-off", (cut, 1), xycoords=("data", "axes fraction"), textcoords="offset points", xytext=(3, -9),
                fontsize=7, color=INK,
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(_apart([length for points in lines.values() for length, _ in points]))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
        axes.set_xlabel("prompt tokens", color=INK)
    every[0].set_ylabel("accuracy", color=INK)
    every[0].set_ylim(-0.02, 1.02)
    if differences:
        every[1].axhline(0, color=INK, lw=0.8)
        every[1].set_ylabel("accuracy, arm - causal", color=INK)
    lines, names = every[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside right upper", frameon=False, labelcolor=INK, fontsize=8)
    return figure


def _apart(lengths: Sequence[float]) -> list[float]:
    """Lengths as ticks of a logarithmic axis, those left out that would touch the one before."""
    ordered = sorted(set(lengths))
    least = (ordered[-1] / ordered[0]) ** 0.06 if ordered else 1.0
    kept: list[float] = []
    for length in ordered:
        if not kept or length > kept[-1] * least:
            kept.append(length)
    return kept


def draw_head_shares(shares: Mapping[str, Sequence[Sequence[float]]]) -> "Figure":
    """Draw, for each arm side by side, a share for each layer (rows) and head (columns), on one scale.

    Args:
        shares: arm -> a row for each layer.
    """
    layers, heads = max(len(rows) for rows in shares.values()), max(len(rows[0]) for rows in shares.values())
    width, height = max(1.6, 0.16 * heads + 0.5), min(max(1.9, 0.13 * layers + 0.9), 8.0)
    columns = min(len(shares), max(1, int(_WIDEST // width)))
    lines = -(-len(shares) // columns)
    figure, every = panels(width * columns + 1.4, height * lines, columns, lines, shared=True)
    most = max((value for rows in shares.values() for row in rows for value in row), default=0.0)
    for axes, (arm, rows) in zip(every, shares.items(), strict=False):
        image = axes.imshow(rows, cmap="viridis", vmin=0, vmax=most or 1.0, aspect="auto", interpolation="nearest")
        axes.set_title(arm, color=INK, fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("head", color=INK)
    for axes in every[len(shares) :]:
        axes.set_visible(False)
    for axes in every[::columns]:
        axes.set_ylabel("layer", color=INK)
    _scale(figure, image, every)
    return figure


def draw_attention_maps(maps: Mapping[str, Sequence[Sequence[float]]], tokens: Sequence[str] | None = None) -> "Figure":
    """Draw the mean attention of one prompt under several arms side by side: rows are queries, columns keys.

    Args:
        maps: arm -> a square map, each row summing to 1.
        tokens: the text of each token, for the axes.
    """
    from matplotlib.colors import PowerNorm

    length = len(next(iter(maps.values())))
    side = min(max(2.8, 0.11 * length + 0.8), 5.5)
    figure, every = panels(side * len(maps) + 1.2, side + (0.4 if tokens is None else 1.2), len(maps), shared=True)
    for axes, (arm, rows) in zip(every, maps.items(), strict=True):
        # The first token draws most of the attention: on a plain scale nothing else would be seen.
        image = axes.imshow(rows, cmap="viridis", norm=PowerNorm(0.4, 0, 1), interpolation="nearest", rasterized=True)
        axes.set_title(arm, color=INK, fontsize=9)
        label_tokens(axes, length, tokens, size=6 if length > 30 else 8, first=0.0)
        axes.set_xlabel("key", color=INK)
    every[0].set_ylabel("query", color=INK)
    _scale(figure, image, every)
    return figure


def _scale(figure: "Figure", image: Any, every: Sequence[Any]) -> None:
    bar = figure.colorbar(image, ax=list(every), fraction=0.05, pad=0.02)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.outline.set_edgecolor(INK)
