"""Mixed training: which samples are read causally in a step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segattn
from segattn.training.mixing import check_share, mix


@settings(deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=4),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_samples_are_taken_whole(lengths, share, seed):
    width = max(sum(row) for row in lengths)
    positions = torch.tensor([[p for n in row for p in range(n)] + [0] * (width - sum(row)) for row in lengths])
    ids = torch.arange(positions.numel()).view_as(positions)
    mixed = mix(ids, positions, share, torch.Generator().manual_seed(seed))
    again = mix(ids, positions, share, torch.Generator().manual_seed(seed))
    assert torch.equal(mixed, again)
    for row, place in enumerate(lengths):
        start = 0
        for length in place:
            sample = mixed[row, start : start + length]
            assert torch.equal(sample, ids[row, start : start + length]) or bool((sample == -1).all())
            start += length
    if share == 0:
        assert torch.equal(mixed, ids)


def test_about_the_share_is_causal_and_rows_are_whole_without_positions():
    ids = torch.arange(5)[None].expand(4000, 5)
    mixed = mix(ids, None, 0.3, torch.Generator().manual_seed(0))
    causal = (mixed == -1).all(-1)
    assert bool((causal | (mixed == ids).all(-1)).all())
    assert 0.27 < causal.float().mean() < 0.33


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0, float("nan")])
def test_no_share(share):
    with pytest.raises(segattn.UnsupportedModelError, match="causal_share"):
        check_share(share)
