"""Rows of different length become one batch."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segattn.training import SegmentCollator

ROW = st.integers(1, 6).flatmap(
    lambda n: st.fixed_dictionaries(
        {name: st.lists(st.integers(0, 9), min_size=n, max_size=n) for name in ("input_ids", "labels", "segment_ids")}
    )
)


@settings(deadline=None)
@given(st.lists(ROW, min_size=1, max_size=4), st.sampled_from([None, 4]))
def test_padding_is_masked_unlabelled_and_causal(rows, multiple):
    batch = SegmentCollator(pad_token_id=5, pad_to_multiple_of=multiple)(rows)
    longest = max(len(row["input_ids"]) for row in rows)
    length = longest if multiple is None else -(-longest // 4) * 4
    for number, row in enumerate(rows):
        missing = length - len(row["input_ids"])
        assert batch["input_ids"][number].tolist() == row["input_ids"] + [5] * missing
        assert batch["attention_mask"][number].tolist() == [1] * len(row["input_ids"]) + [0] * missing
        assert batch["labels"][number].tolist() == row["labels"] + [-100] * missing
        assert batch["segment_ids"][number].tolist() == row["segment_ids"] + [-1] * missing


def test_columns_of_different_length_are_refused():
    with pytest.raises(ValueError, match="columns of a row differ in length"):
        SegmentCollator(0)([{"input_ids": [1, 2], "labels": [1], "segment_ids": [0, 0]}])
