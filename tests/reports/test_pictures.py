import re
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import segattn
from oracle import may_see
from segattn.reports.pictures import draw_learning_curves, draw_mask, draw_mismatch_matrix, save, svg
from strategies import segmentations


def cells(figure):
    """What the picture shows, row by row: 0 blocked, 1 causal, 2 ahead."""
    mesh = figure.axes[0].collections[0]
    return mesh.get_array().reshape(mesh.get_coordinates().shape[0] - 1, -1).tolist()


@settings(deadline=None, max_examples=15)
@given(segmentations(max_length=9))
def test_the_mask_picture_shows_the_rule(row):
    expected = [
        [(1 if key <= query else 2) if may_see(row, query, key) else 0 for key in range(len(row))]
        for query in range(len(row))
    ]
    assert cells(draw_mask(row)) == expected


def test_tokens_become_labels_with_visible_white_space():
    figure = draw_mask([0, 0, -1], ["a b", "$x$\n", "a very long piece of text"])
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["a·b", "$x$⏎", "a·very·long·p…"]
    assert not any(label.get_parse_math() for label in figure.axes[0].get_xticklabels())


@settings(deadline=None, max_examples=15)
@given(st.lists(st.text(max_size=5), min_size=1, max_size=5))
@example(["日本", "\x00\x1b[0m", "\ud800", "<b>&", "\\$_{", "$", "\u202e"])
def test_any_token_text_gives_well_formed_svg(tokens):
    root = ElementTree.fromstring(svg(draw_mask([0] * len(tokens), tokens), "a mask"))
    shown = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    labels = [token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·") for token in tokens]
    for label in labels:
        if label.isascii() and label.isprintable() and label.strip():
            assert label in shown


def test_what_the_font_lacks_becomes_a_box():
    figure = draw_mask([0, 0], ["a日b", "\x00"])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a□b", "□"]


@pytest.mark.parametrize("length", [80, 800])
def test_a_mask_stays_small_enough_for_a_page(length):
    assert len(svg(draw_mask([0] * (length - 20) + [-1] * 20), "a mask")) < 200_000


def test_a_tensor_of_one_row_and_many_tokens(tmp_path):
    ids = segattn.spans_to_segment_ids([(0, 100), (100, 260)], 300)
    draw_mask(ids[None], path=tmp_path / "mask.png")
    assert (tmp_path / "mask.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("ids", "tokens", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), None, r"shape \(2, 3\); expected one row"),
        ([0] * 2049, None, "1 to 2048 tokens"),
        ([0, 0], ["a"], "1 token texts for 2 segment ids"),
        ([0, 1, 0], None, "opens segment 0 again"),
    ],
)
def test_what_cannot_be_drawn_is_named(ids, tokens, message):
    with pytest.raises(segattn.SegmentError, match=message):
        draw_mask(ids, tokens)


def test_an_unknown_format_leaves_no_file(tmp_path):
    with pytest.raises(segattn.SegmentError, match="cannot be written"):
        save(draw_mask([0]), tmp_path / "mask.nonsense")
    assert list(tmp_path.iterdir()) == []


def test_curves_show_every_point_and_the_opening():
    points = [{"step": 0, "loss": 2.0, "opening_loss": 3.0}, {"step": 5, "loss": 0.5, "opening_loss": None}]
    axes = draw_learning_curves({"causal": points[1:], "segments": points}, chance=1.8).axes[0]
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert lines["segments"] == ([0, 5], [2.0, 0.5])
    assert lines["segments, under the bias of the moment"] == ([0], [3.0])
    assert lines["causal"] == ([5], [0.5])


def test_the_matrix_shows_every_value():
    axes = draw_mismatch_matrix({"base": {"causal": 0.17, "segments": 0.5}}).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.17", "0.50"]


def test_inline_svg_takes_the_color_of_the_page_and_is_the_same_each_time():
    first, second = (svg(draw_mask([0, 0, -1]), "a mask") for _ in range(2))
    assert first == second
    assert first.startswith("<svg")
    assert "currentColor" in first


def test_pictures_on_one_page_share_no_ids_and_find_their_own():
    curves = {"causal": [{"step": 0, "loss": 2.0}, {"step": 5, "loss": 0.5}]}
    texts = [svg(draw_mask([0, 0, -1]), "one"), svg(draw_learning_curves(curves), 'two "<quoted>"')]
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in texts]
    assert not ids[0] & ids[1]
    for text, own in zip(texts, ids, strict=True):
        used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
        assert used
        assert {name for pair in used for name in pair if name} <= own
    root = ElementTree.fromstring(texts[1])
    assert (root.get("role"), root.get("aria-label")) == ("img", 'two "<quoted>"')
