from xml.etree import ElementTree

import pytest

from segattn.reports.pictures import svg
from segattn.reports.sweep_pictures import draw_attention_maps, draw_bands, draw_head_shares, draw_lengths

CURVE = {"steps": [0, 10, 20], "mean": [4.0, 2.0, 1.0], "low": [3.5, 1.5, 0.5], "high": [4.5, 2.5, 1.5]}


def interval(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def test_bands_show_the_mean_and_the_range_of_the_seeds():
    figure = draw_bands({"causal": CURVE, "mixed": CURVE}, "loss", ["causal", "segments", "mixed"], logarithmic=True)
    axes = figure.axes[0]
    assert [line.get_label() for line in axes.lines] == ["causal", "mixed"]
    assert list(axes.lines[0].get_ydata()) == [4.0, 2.0, 1.0]
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0.5, 4.5)
    assert axes.get_yscale() == "log"
    flat = {**CURVE, "low": [0.0, 0.0, 0.0]}
    assert draw_bands({"causal": flat}, "loss", ["causal"], logarithmic=True).axes[0].get_yscale() == "linear"


def test_an_arm_has_one_color_in_every_picture_and_no_two_share_one():
    arms = ["untuned", "causal", "segments", "mixed", "opened"]
    colors = [line.get_color() for line in draw_bands(dict.fromkeys(arms, CURVE), "loss", arms).axes[0].lines]
    assert len(set(colors)) == 5
    assert draw_bands({"opened": CURVE}, "loss", arms).axes[0].lines[0].get_color() == colors[-1]


def test_lengths_show_both_panels_and_the_cut_off():
    points = [(40, interval(0.5)), (150, interval(0.7))]
    figure = draw_lengths({"causal": points, "segments": points}, {"segments": points}, [128], ["causal", "segments"])
    left, right = figure.axes
    # Beside one another, within 2 % of the length.
    assert left.lines[0].get_xdata()[0] == pytest.approx(40, rel=0.02)
    assert [text.get_text() for text in (*left.texts, *right.texts)] == ["cut-off", "cut-off"]
    ElementTree.fromstring(svg(figure, "lengths"))
    assert list(left.get_xticks()) == [40, 150]


def test_lengths_without_a_difference_are_one_panel():
    points = [(37, interval(0.5)), (37.5, interval(0.4)), (53, interval(0.7))]
    (axes,) = draw_lengths({"causal": points}, {}, [], ["causal"]).axes
    assert list(axes.get_xticks()) == [37, 53], "ticks that would touch are left out"


def test_shares_have_one_scale_and_break_into_lines():
    few = draw_head_shares({"causal": [[0.1, 0.2]], "segments": [[0.3, 0.4]]})
    assert [axes.images[0].get_clim() for axes in few.axes[:2]] == [(0, 0.4), (0, 0.4)]
    many = draw_head_shares({f"arm {number}": [[0.1] * 32] * 24 for number in range(5)})
    assert many.get_figwidth() < 14
    assert sum(axes.get_visible() and bool(axes.images) for axes in many.axes) == 5


def test_maps_name_their_tokens():
    figure = draw_attention_maps({"causal": [[1.0, 0.0], [0.5, 0.5]], "segments": [[0.5, 0.5]] * 2}, ["a b", "$x$"])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["a·b", "$x$"]
    assert [axes.get_title() for axes in figure.axes[:2]] == ["causal", "segments"]
    ElementTree.fromstring(svg(figure, "maps"))
