"""Attention slice by slice against a masked softmax in float64, with every kernel, and what it keeps in memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segattn
from oracle import loop_attention, loop_mask
from segattn.attention.kernels import WrittenOut
from segattn.attention.sliced import sliced_attention
from segattn.attention.slices import plan_slices
from segattn.ranges import visible_ranges
from strategies import padded_batches

SCALE = 0.4


def masked(query, key, value, mask, sinks=None, softcap=None):
    """The formula under a mask; a sink is one more score, whose weight goes nowhere."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * SCALE
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, -1e30)
    if sinks is not None:
        scores = torch.cat([scores, sinks[None, :, None, None].expand(*scores.shape[:3], 1)], -1)
    weights = scores.softmax(-1)[..., : mask.shape[-1]]
    return weights.masked_fill(~mask, 0.0) @ value


def draw_tensors(rows, queries, heads, key_heads, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    batch, keys = len(rows), len(rows[0])
    shapes = ((batch, heads, queries, sizes[0]), (batch, key_heads, keys, sizes[0]), (batch, key_heads, keys, sizes[1]))
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


@settings(deadline=None, max_examples=150)
@given(
    padded_batches(max_length=14),
    st.one_of(st.none(), st.integers(1, 6)),
    st.sampled_from([(4, 4), (4, 2), (2, 1)]),
    st.sampled_from([(8, 8), (5, 3), (4, 9)]),
    st.sampled_from([None, 1.5]),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_outputs_and_gradients(batch, window, heads, sizes, softcap, with_sinks, written_out, data):
    rows, reals = batch
    queries = data.draw(st.integers(1, len(rows[0])))
    inputs = draw_tensors(rows, queries, *heads, sizes, data.draw(st.integers(0, 99)))
    sinks = torch.linspace(-1, 1, heads[0], dtype=torch.float64).requires_grad_() if with_sinks else None
    ids, mask = torch.tensor(rows), loop_mask(rows, reals=reals, window=window, queries=queries)
    plan = plan_slices(visible_ranges(ids, torch.tensor(reals), query_length=queries, sliding_window=window))
    kernel = WrittenOut(SCALE, softcap) if written_out else None
    got = sliced_attention(*inputs, plan, scale=SCALE, softcap=softcap, sinks_H=sinks, kernel=kernel)
    want = masked(*inputs, mask, sinks, softcap)
    torch.testing.assert_close(got, want)
    gradient = torch.randn_like(want)
    leaves = inputs if sinks is None else [*inputs, sinks]
    pairs = zip(torch.autograd.grad(got, leaves, gradient), torch.autograd.grad(want, leaves, gradient), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("shape", [(1, 2, 60, 8)])
def test_numbers_that_lie_apart_in_memory(shape):
    """Kernels read rows of numbers; a transposed view, or the gradient of a sum, has none."""
    apart = torch.randn(shape).transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    rows = [[0] * 30 + [-1] * 30]
    plan = plan_slices(visible_ranges(torch.tensor(rows)))
    got = sliced_attention(apart, apart, apart, plan, scale=SCALE)
    want = masked(apart, apart, apart, loop_mask(rows))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), apart)[0], torch.autograd.grad(want.sum(), apart)[0], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("window", "factor"), [(None, 1.15), (20, 1.4)])
def test_low_precision_errs_about_as_the_stock_kernel_does(dtype, window, factor):
    """Up to three slices share a query under a window, and each rounds its own output."""
    rows = [[0] * 40 + [-1] * 10 + [1] * 50 + [-1] * 20]
    query, key, value = (tensor.detach().to(dtype) for tensor in draw_tensors(rows, 120, 4, 4, (16, 16), 3))
    mask = loop_mask(rows, window=window)
    want = loop_attention(query, key, value, mask)
    stock = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    got = segattn.segment_attention(query, key, value, torch.tensor(rows), sliding_window=window, backend="sliced")
    assert got.dtype == dtype
    mine, theirs = ((output.double() - want).square().mean().sqrt() for output in (got, stock))
    assert mine <= factor * theirs


def test_dropout_follows_the_seed_and_keeps_the_mean():
    rows = [[0] * 5 + [-1] * 6]
    inputs = draw_tensors(rows, 11, 2, 2, (8, 8), 0)
    plan = plan_slices(visible_ranges(torch.tensor(rows)))

    def run(seed):
        torch.manual_seed(seed)
        return sliced_attention(*inputs, plan, scale=SCALE, dropout=0.3)

    assert torch.equal(run(1), run(1))
    with torch.no_grad():
        outputs = torch.stack([run(seed) for seed in range(500)])
    want = masked(*inputs, loop_mask(rows))
    torch.testing.assert_close(outputs.mean(0), want, atol=5 * float(outputs.std()) / 500**0.5, rtol=0)


def test_no_tensor_of_n_times_n_is_made():
    """The largest tensor that forward and backward make grows with n, not with n^2."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, torch.Tensor):
                    self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
            return result

    n = 2048
    ids = segattn.spans_to_segment_ids([(0, n // 4), (n // 4, n // 2), (3 * n // 4, n - 9)], n)
    query, key, value = (torch.randn(1, 1, n, 8, requires_grad=True) for _ in range(3))
    sizes = {}
    for backend in ("sliced", "dense"):
        with Largest() as largest:
            segattn.segment_attention(query, key, value, ids, backend=backend).sum().backward()
        sizes[backend] = largest.numbers
    assert sizes["sliced"] <= n * 64
    assert sizes["dense"] >= n * n


def test_gaps_are_refused_by_name_and_left_to_a_mask_by_auto():
    rows, reals = [[0, 0, -1, -1, -1]], [[1, 1, 0, 1, 1]]
    query, key, value = (torch.randn(1, 1, 5, 4) for _ in range(3))
    arguments = (query, key, value, torch.tensor([[-1] * 5]), torch.tensor(reals))
    with pytest.raises(segattn.UnsupportedModelError, match="keys without gaps"):
        segattn.segment_attention(*arguments, backend="sliced")
    got = segattn.segment_attention(*arguments)
    want = loop_attention(query, key, value, loop_mask([[-1] * 5], reals=reals))
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)
    assert rows
