import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segattn
from oracle import loop_attention, loop_mask
from segattn.attention import BACKENDS
from strategies import padded_batches


def inputs(rows, heads=4, key_heads=2, size=8, queries=None, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch, keys = len(rows), len(rows[0])

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return (
        draw(batch, heads, queries or keys, size),
        draw(batch, key_heads, keys, size),
        draw(batch, key_heads, keys, size),
    )


@pytest.mark.parametrize("backend", ["reference", "dense", "sliced", "auto"])
@settings(deadline=None, max_examples=40)
@given(padded_batches(max_length=9), st.one_of(st.none(), st.integers(1, 5)), st.integers(0, 99), st.data())
def test_equals_the_loop(backend, batch, window, seed, data):
    rows, reals = batch
    queries = data.draw(st.integers(1, len(rows[0])))
    query, key, value = inputs(rows, queries=queries, seed=seed)
    got = segattn.segment_attention(
        query, key, value, torch.tensor(rows), torch.tensor(reals), sliding_window=window, backend=backend
    )
    want = loop_attention(query, key, value, loop_mask(rows, reals=reals, window=window, queries=queries))
    assert got.dtype == query.dtype
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)


def test_scale_and_softcap():
    rows = [[0, 0, 0, -1, -1, 1, 1]]
    query, key, value = inputs(rows)
    want = loop_attention(query, key, value, loop_mask(rows), scale=0.9, softcap=1.5)
    got = segattn.segment_attention(query, key, value, torch.tensor(rows), scale=0.9, softcap=1.5)
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)


def test_low_precision_errs_no_more_than_the_stock_kernel_does():
    rows = [[0] * 40 + [1] * 50 + [-1] * 6]
    query, key, value = inputs(rows, dtype=torch.bfloat16)
    want = loop_attention(query, key, value, loop_mask(rows))
    groups = [tensor.repeat_interleave(2, dim=1) for tensor in (key, value)]
    stock = torch.nn.functional.scaled_dot_product_attention(query, *groups, attn_mask=loop_mask(rows))
    allowed = (stock.double() - want).abs().max()
    for backend in ("reference", "dense", "sliced"):
        got = segattn.segment_attention(query, key, value, torch.tensor(rows), backend=backend)
        assert (got.double() - want).abs().max() <= 1.5 * allowed


@pytest.mark.parametrize("backend", ["reference", "dense", "sliced"])
def test_gradients_are_exact(backend):
    rows, reals = [[-1, 0, 0, 0, 1, -1], [-1, -1, 2, 2, -1, -1]], [[1] * 6, [0, 0, 1, 1, 1, 1]]
    tensors = [tensor.requires_grad_() for tensor in inputs(rows, size=3, dtype=torch.float64)]

    def attend(query, key, value):
        return segattn.segment_attention(
            query, key, value, torch.tensor(rows), torch.tensor(reals), sliding_window=3, backend=backend
        )

    assert torch.autograd.gradcheck(attend, tensors)


@pytest.mark.parametrize("backend", ["reference", "dense", "sliced"])
def test_blind_queries_give_zeros_and_finite_gradients(backend):
    rows, reals = [[-1, -1, 0, 0]], [[0, 0, 1, 1]]
    tensors = [tensor.requires_grad_() for tensor in inputs(rows)]
    output = segattn.segment_attention(*tensors, torch.tensor(rows), torch.tensor(reals), backend=backend)
    assert (output[:, :, :2] == 0).all()
    assert (output[:, :, 2:] != 0).any()
    output.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in tensors)


def test_all_causal_is_stock_causal_attention():
    rows = [[-1] * 9]
    query, key, value = inputs(rows, key_heads=4)
    stock = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(segattn.segment_attention(query, key, value, torch.tensor(rows)), stock)


@pytest.mark.slow
def test_flex_equals_the_loop_forward():
    rows, reals = [[-1] + [0] * 60 + [1] * 90 + [-1] * 9, [-1] * 30 + [3] * 110 + [-1] * 20], None
    reals = [[1] * 160, [0] * 30 + [1] * 130]
    for softcap, window in ((None, None), (2.0, 40)):
        query, key, value = inputs(rows, size=16)
        with torch.no_grad():
            got = segattn.segment_attention(
                query, key, value, torch.tensor(rows), torch.tensor(reals), softcap=softcap, sliding_window=window,
                backend="flex",
            )  # fmt: skip
        want = loop_attention(query, key, value, loop_mask(rows, reals=reals, window=window), softcap=softcap)
        torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)


def test_flex_refuses_gradients_on_cpu():
    query, key, value = inputs([[0, 0]])
    with pytest.raises(segattn.UnsupportedModelError, match="no backward pass on CPU"):
        segattn.segment_attention(query.requires_grad_(), key, value, torch.tensor([[0, 0]]), backend="flex")


def test_dense_refuses_softcap():
    query, key, value = inputs([[0, 0]])
    with pytest.raises(segattn.UnsupportedModelError, match="softcap"):
        segattn.segment_attention(query, key, value, torch.tensor([[0, 0]]), softcap=1.0, backend="dense")


def test_an_unknown_backend_lists_the_known_ones():
    query, key, value = inputs([[0, 0]])
    with pytest.raises(segattn.SegmentError, match=", ".join(BACKENDS)):
        segattn.segment_attention(query, key, value, torch.tensor([[0, 0]]), backend="fast")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, s: (q[0], k, v, s), "four axes"),
        (lambda q, k, v, s: (q, k, v[:, :, :2], s), "expected"),
        (lambda q, k, v, s: (q[:, :3], k, v, s), "multiple of the key heads"),
        (lambda q, k, v, s: (q, k[:, :, :2], v[:, :, :2], s[:, :2]), "at most as many queries"),
        (lambda q, k, v, s: (q, k, v, s[:, :2]), r"segment_ids has shape \(1, 2\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    arguments = (*inputs([[0, 0, -1]]), torch.tensor([[0, 0, -1]]))
    with pytest.raises(segattn.SegmentError, match=message):
        segattn.segment_attention(*change(*arguments))
