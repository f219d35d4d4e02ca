"""One picture for each claim, drawn from its results."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segattn.bench.layouts import LAYOUTS
from segattn.bench.results import Results, Row
from segattn.bench.timing import Spread
from segattn.reports.pictures import AHEAD_COLOR, CAUSAL_COLOR, INK, save

__all__ = ["draw"]

# Contestant -> its label, color, line and marker; in this order they stand in legends.
STYLES: dict[str, tuple[str, str, str, str]] = {
    "dense": ("dense mask", "#6a737d", "-", "s"),
    "transformers": ("transformers' block mask", "#a0589b", "-", "^"),
    "flex": ("FlexAttention", "#4b9b6e", "-", "D"),
    "sliced": ("sliced", AHEAD_COLOR, "-", "o"),
    "segments": ("segments", AHEAD_COLOR, "-", "o"),
    "bound": ("bound", INK, "--", ""),
    "causal": ("causal", CAUSAL_COLOR, "-", "o"),
}


def draw(results: Results, path: Path) -> Path | None:
    """Draw the picture of a claim; None where nothing was measured, or where a claim has no picture."""
    if not results.rows or results.claim not in _DRAWN:
        return None
    return save(_DRAWN[results.claim](results.rows), path)


def _figure(rows: int, columns: int, width: float, height: float, *, shared: bool = False) -> tuple[Any, list[Any]]:
    """A figure without pyplot's global state, and its panels; those of a row may share their scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey="row" if shared else False).flat)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(colors=INK, which="both", labelsize=8)
        panel.grid(axis="y", color="#0001")
    return figure, panels


def _lines(panel: Any, rows: Sequence[Row], names: Sequence[str], base: str) -> None:
    """Ratios to a base against length; the bars are quartiles."""
    for name in names:
        points = [(row.cell["length"], row.ratio(name, base)) for row in rows if {name, base} <= set(row.figures)]
        if not points:
            continue
        label, color, line, marker = STYLES[name]
        bars = [
            [spread.median - spread.low for _, spread in points],
            [spread.high - spread.median for _, spread in points],
        ]
        panel.errorbar(
            [length for length, _ in points], [spread.median for _, spread in points], yerr=bars, label=label,
            color=color, ls=line, marker=marker, ms=4, lw=1.4, capsize=2,
        )  # fmt: skip
    panel.axhline(1.0, color=CAUSAL_COLOR, lw=1, label=STYLES["causal"][0])
    _lengths(panel, rows)


def _lengths(panel: Any, rows: Sequence[Row]) -> None:
    lengths = sorted({row.cell["length"] for row in rows})
    panel.set_xscale("log", base=2)
    panel.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=30)
    panel.set_xticks([], minor=True)


def _attention(rows: Sequence[Row]) -> Any:
    directions = list(dict.fromkeys(row.cell["pass"] for row in rows))
    figure, panels = _figure(len(directions), len(LAYOUTS), 10.5, 3.1 * len(directions) + 0.6, shared=True)
    cells = [(direction, layout) for direction in directions for layout in LAYOUTS]
    for number, (panel, (direction, layout)) in enumerate(zip(panels, cells, strict=True)):
        mine = [row for row in rows if (row.cell["pass"], row.cell["layout"]) == (direction, layout)]
        _lines(panel, mine, ("dense", "transformers", "flex", "sliced", "bound"), "causal")
        panel.set_ylim(bottom=0)
        panel.set_title(f"{layout}, {direction}", fontsize=9, color=INK)
        if number % len(LAYOUTS) == 0:
            panel.set_ylabel("time relative to causal SDPA", fontsize=8, color=INK)
    _legend(figure, panels)
    return figure


def _legend(figure: Any, panels: Sequence[Any]) -> None:
    """One legend for all panels, below them."""
    found: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    order = [style[0] for style in STYLES.values() if style[0] in found]
    figure.legend([found[label] for label in order], order, loc="outside lower center", ncols=len(order), frameon=False,
                  fontsize=8, labelcolor=INK)  # fmt: skip


def _prefill(rows: Sequence[Row]) -> Any:
    models = list(dict.fromkeys(row.cell["model"] for row in rows))
    figure, panels = _figure(1, len(models), 4.6 * len(models), 3.6)
    for panel, model in zip(panels, models, strict=True):
        _lines(panel, [row for row in rows if row.cell["model"] == model], ("dense", "segments", "bound"), "causal")
        panel.set_title(f"prefill, {model}", fontsize=9, color=INK)
        panel.set_xlabel("tokens", fontsize=8, color=INK)
    panels[0].set_ylabel("time relative to causal", fontsize=8, color=INK)
    _legend(figure, panels)
    return figure


def _memory(rows: Sequence[Row]) -> Any:
    figure, (panel,) = _figure(1, 1, 5.4, 3.6)
    for name in ("dense", "segments", "causal"):
        label, color, line, marker = STYLES[name]
        peaks = [row.figure(name).median / 2**30 for row in rows]
        panel.plot([row.cell["length"] for row in rows], peaks, label=label, color=color, ls=line, marker=marker, ms=4)
    loaded = [row.figure("loaded").median / 2**30 for row in rows]
    panel.plot([row.cell["length"] for row in rows], loaded, label="model loaded, no prefill", color=INK, ls=":")
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.set_xlabel("tokens", fontsize=8, color=INK)
    panel.set_ylabel("peak memory of the process (GiB)", fontsize=8, color=INK)
    panel.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


def _bars(found: Mapping[str, Spread], label: str, mark: float = 1.0) -> Any:
    """Horizontal bars from zero, with quartiles."""
    figure, (panel,) = _figure(1, 1, 6.6, 0.9 + 0.42 * len(found))
    spreads = list(found.values())
    bars = [[spread.median - spread.low for spread in spreads], [spread.high - spread.median for spread in spreads]]
    places = range(len(found))
    panel.barh(places, [spread.median for spread in spreads], xerr=bars, color=AHEAD_COLOR, height=0.55, ecolor=INK,
               capsize=3)  # fmt: skip
    for place, spread in zip(places, spreads, strict=True):
        panel.text(max(spread.high, spread.median), place, f"  {spread.median:.3f}", va="center", fontsize=8, color=INK)
    panel.axvline(mark, color=CAUSAL_COLOR, lw=1)
    panel.set_yticks(places, list(found))
    panel.invert_yaxis()
    panel.set_xlim(0, 1.15 * max(mark, *(spread.high for spread in spreads)))
    panel.set_xlabel(label, fontsize=8, color=INK)
    panel.grid(visible=False)
    return figure


def _decoding(rows: Sequence[Row]) -> Any:
    found = {
        f"after {row.cell['prompt']:,} tokens": row.ratio("segments", "causal") for row in rows if "prompt" in row.cell
    }
    return _bars(found, "time of one decoded token, segments relative to the stock model")


def _training_step(rows: Sequence[Row]) -> Any:
    found = {f"{row.cell['length']} tokens, {row.cell['layout']}": row.ratio("segments", "causal") for row in rows}
    return _bars(found, "time of one training step, segments relative to causal")


def _first_token(rows: Sequence[Row]) -> Any:
    found = {f"system prompt of {row.cell['system']:,} tokens": row.ratio("prefix cache", "no cache") for row in rows}
    return _bars(found, "time to the first token, prefix cache relative to none")


def _thresholds(rows: Sequence[Row]) -> Any:
    lengths = list(dict.fromkeys(row.cell["length"] for row in rows))
    layouts = list(dict.fromkeys(row.cell["layout"] for row in rows))
    figure, (panel,) = _figure(1, 1, 6.0, 3.6)
    shades = ("#f3c08a", AHEAD_COLOR, "#b3661a", "#6b3a0c")
    for layout, color in zip(layouts, shades, strict=False):
        mine = [row for row in rows if row.cell["layout"] == layout]
        ratios = [row.ratio("planned", "dense") for row in mine]
        places = [lengths.index(row.cell["length"]) for row in mine]
        bars = [[spread.median - spread.low for spread in ratios], [spread.high - spread.median for spread in ratios]]
        panel.errorbar(places, [spread.median for spread in ratios], yerr=bars, label=layout, color=color, marker="o",
                       ms=4, capsize=2)  # fmt: skip
    panel.axhline(1.0, color=INK, lw=1, ls="--")
    panel.set_ylim(bottom=0)
    panel.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    panel.set_xlabel("tokens", fontsize=8, color=INK)
    panel.set_ylabel("time of slices relative to the mask", fontsize=8, color=INK)
    panel.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


def _cost_model(rows: Sequence[Row]) -> Any:
    checked = [row for row in rows if "measured" in row.facts]
    figure, panels = _figure(1, 2, 9.6, 3.8)
    for model, color in zip(
        dict.fromkeys(row.cell["model"] for row in checked), (AHEAD_COLOR, "#4b9b6e"), strict=False
    ):
        mine = [row for row in checked if row.cell["model"] == model]
        measured = [Spread(**row.facts["measured"]) for row in mine]
        bars = [
            [spread.median - spread.low for spread in measured],
            [spread.high - spread.median for spread in measured],
        ]
        panels[0].errorbar([row.ratio("segments", "causal").median for row in mine], [s.median for s in measured],
                           yerr=bars, ls="", marker="o", color=color, label=model, capsize=2)  # fmt: skip
    low, high = panels[0].get_ylim()
    panels[0].axline((1.0, 1.0), slope=1, color=INK, lw=1, ls="--")
    panels[0].set_xlim(min(low, 0.98), max(high, 1.05))
    panels[0].set_xlabel("segments / causal, predicted", fontsize=8, color=INK)
    panels[0].set_ylabel("segments / causal, measured", fontsize=8, color=INK)
    panels[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    large = [row for row in rows if "measured" not in row.facts and row.cell["layout"] == "25/70/5"]
    for model, color in zip(
        dict.fromkeys(row.cell["model"] for row in large), (AHEAD_COLOR, CAUSAL_COLOR), strict=False
    ):
        for slowdown, line in (("none", "-"), ("of the single layer here", ":")):
            mine = [row for row in large if (row.cell["model"], row.cell["slowdown"]) == (model, slowdown)]
            label = model if slowdown == "none" else f"{model}, attention as slow as here"
            panels[1].plot([row.cell["length"] for row in mine], [r.ratio("segments", "causal").median for r in mine],
                           color=color, ls=line, marker="o", ms=4, label=label)  # fmt: skip
    _lengths(panels[1], large)
    panels[1].set_xlabel("tokens", fontsize=8, color=INK)
    panels[1].set_ylabel("segments / causal, predicted (25/70/5)", fontsize=8, color=INK)
    panels[1].legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


_DRAWN: dict[str, Callable[[Sequence[Row]], Any]] = {
    "attention": _attention,
    "thresholds": _thresholds,
    "prefill": _prefill,
    "decoding": _decoding,
    "training_step": _training_step,
    "first_token": _first_token,
    "memory": _memory,
    "cost_model": _cost_model,
}
