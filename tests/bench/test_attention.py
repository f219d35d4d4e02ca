import pytest
import torch

import segattn
from segattn.bench import attention
from segattn.bench.attention import CONTESTANTS, AttentionCell, measure_attention
from segattn.bench.errors import BenchError
from segattn.bench.timing import Effort

ONCE = Effort(0.0, least=1, most=1, warm_up=False)
WITHOUT_COMPILING = [name for name in CONTESTANTS if name != "flex"]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("layout", ["25/70/5", "ten turns"])
def test_every_contestant_is_checked_and_timed(layout, backward):
    cell = AttentionCell(96, layout, backward, heads=4, kv_heads=2, head_size=8)
    row = measure_attention(cell, WITHOUT_COMPILING, ONCE)
    assert row.cell == cell.to_dict()
    assert set(row.figures) == {*WITHOUT_COMPILING, "bound"}
    assert all(len(figures) == 1 and figures[0] > 0 for figures in row.figures.values())
    assert set(row.errors) == set(WITHOUT_COMPILING)
    assert max(row.errors.values()) < 1e-5


def test_the_bound_is_full_attention_times_the_share_of_scores():
    row = measure_attention(AttentionCell(40, "one 95 %", heads=2, kv_heads=1), ["full"], ONCE)
    share = (38 * 38 + 39 + 40) / 40**2
    assert row.facts["share"] == pytest.approx(share)
    assert row.figures["bound"][0] == pytest.approx(row.figures["full"][0] * share)


@pytest.mark.parametrize("backward", [False, True])
def test_a_fast_but_wrong_contestant_is_refused(monkeypatch, backward):
    def causal(query, key, value, segment_ids, backend):
        return segattn.segment_attention(query, key, value, torch.full_like(segment_ids, -1), backend="dense")

    monkeypatch.setattr(attention, "segment_attention", causal)
    cell = AttentionCell(64, backward=backward, heads=2, kv_heads=1)
    with pytest.raises(BenchError, match="sliced differs from the reference"):
        measure_attention(cell, ["dense", "sliced"], ONCE)


def test_a_wrong_gradient_is_refused(monkeypatch):
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            return tensor.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient / 2

    def wrong(query, key, value, segment_ids, backend):
        return segattn.segment_attention(query, key, Halved.apply(value), segment_ids, backend=backend)

    monkeypatch.setattr(attention, "segment_attention", wrong)
    measure_attention(AttentionCell(64, heads=2, kv_heads=1), ["sliced"], ONCE)
    with pytest.raises(BenchError, match="sliced differs"):
        measure_attention(AttentionCell(64, backward=True, heads=2, kv_heads=1), ["sliced"], ONCE)
