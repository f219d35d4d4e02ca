import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segattn.bench.errors import BenchError
from segattn.bench.layouts import LAYOUTS, layout_ids
from segattn.segments import check_segment_ids


def runs(ids):
    values, counts = torch.unique_consecutive(ids[0], return_counts=True)
    return list(zip(values.tolist(), counts.tolist(), strict=True))


def test_the_layouts_by_hand():
    assert runs(layout_ids("25/70/5", 20)) == [(0, 5), (1, 14), (-1, 1)]
    assert runs(layout_ids("one 95 %", 40)) == [(0, 38), (-1, 2)]
    assert runs(layout_ids("ten turns", 40)) == [run for turn in range(10) for run in ((turn, 2), (-1, 2))]
    assert runs(layout_ids("2 turns", 20)) == [(0, 5), (-1, 5), (1, 5), (-1, 5)]


@given(st.sampled_from([*LAYOUTS, "1 turn", "7 turns"]), st.integers(20, 500))
def test_every_layout_is_a_segmentation_with_causal_tokens_at_its_end(layout, length):
    ids = check_segment_ids(layout_ids(layout, length))
    assert ids.shape == (1, length)
    assert ids[0, 0] == 0
    assert ids[0, -1] == -1


@pytest.mark.parametrize(
    ("layout", "length", "message"),
    [
        ("25/70/5", 19, "the length is 19; expected 20"),
        ("25/70/5", -5, "the length is -5; expected 20"),
        ("no such", 100, "the layout is 'no such'; expected one of 25/70/5"),
        ("0 turns", 100, "0 turns do not fit"),
        ("51 turns", 100, "51 turns do not fit"),
    ],
)
def test_bad_layouts_are_refused(layout, length, message):
    with pytest.raises(BenchError, match=message):
        layout_ids(layout, length)
