import pytest
import torch
from torch._dynamo.utils import counters

import segattn
from oracle import loop_attention, loop_mask
from segattn.attention import flex

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
]
HEADS, KEY_HEADS, SIZE, VALUE_SIZE = 4, 2, 16, 24

# Segmentations of one length class (257 to 384 tokens) in batches of two.
SHORT = [[-1] + [0] * 120 + [1] * 130 + [-1] * 9, [2] * 140 + [-1] * 120]
LONG = [[-1] * 384, [7] * 384]
PADDED = [[-1] * 150 + [3] * 110 + [-1] * 40, [0] * 290 + [-1] * 10]
PADDED_REAL = [[0] * 150 + [1] * 150, [1] * 295 + [0] * 5]


def inputs(rows, *, queries=None, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(len(rows[0]))
    batch, keys = len(rows), len(rows[0])
    shapes = [(HEADS, queries or keys, SIZE), (KEY_HEADS, keys, SIZE), (KEY_HEADS, keys, VALUE_SIZE)]
    return [torch.randn(batch, *shape, generator=generator).to(device, dtype) for shape in shapes]


def attend(tensors, rows, reals=None, **options):
    device = tensors[0].device
    real = None if reals is None else torch.tensor(reals, device=device)
    return segattn.segment_attention(*tensors, torch.tensor(rows, device=device), real, backend="flex", **options)


def assert_equals_the_loop(rows, device, *, reals=None, queries=None, window=None, scale=None, softcap=None):
    tensors = inputs(rows, queries=queries, device=device)
    with torch.no_grad():
        got = attend(tensors, rows, reals, sliding_window=window, scale=scale, softcap=softcap)
    mask = loop_mask(rows, reals=reals, window=window, queries=queries)
    want = loop_attention(*(tensor.cpu() for tensor in tensors), mask, scale=scale, softcap=softcap)
    assert got.shape == want.shape
    torch.testing.assert_close(got.cpu().double(), want, atol=1e-5, rtol=1e-5)
    return got


@pytest.fixture
def compilations():
    """How many graphs were compiled since the test began, with none to begin with."""
    flex._compiled.cache_clear()
    before = counters["stats"]["unique_graphs"]
    return lambda: counters["stats"]["unique_graphs"] - before


@pytest.mark.parametrize("device", DEVICES)
def test_one_compilation_serves_all_segmentations_of_a_length_class(device, compilations):
    assert_equals_the_loop(SHORT, device)
    assert_equals_the_loop(SHORT, device, window=70)
    assert_equals_the_loop(LONG, device)
    blind = assert_equals_the_loop(PADDED, device, reals=PADDED_REAL)
    assert (blind[0, :, :150] == 0).all()
    # Queries after a cache, and strides that projections leave behind, where nothing is filled up.
    assert_equals_the_loop(PADDED, device, reals=PADDED_REAL, queries=257)
    tensors = inputs(LONG, device=device)
    strided = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in tensors]
    with torch.no_grad():
        torch.testing.assert_close(attend(strided, LONG), attend(tensors, LONG))
    assert compilations() == 1


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_what_needs_a_compilation_of_its_own(device, compilations):
    assert_equals_the_loop(SHORT, device, scale=0.9)
    assert_equals_the_loop(SHORT, device, softcap=2.0)
    assert_equals_the_loop(SHORT[:1], device)
    assert_equals_the_loop([row[:99] for row in SHORT], device)  # shorter than a block
    assert_equals_the_loop(SHORT, device, queries=3)
    assert compilations() == 5
    assert_equals_the_loop(SHORT, device, queries=90, window=20)
    assert compilations() == 5


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_one_query_after_a_long_cache(device, compilations):
    rows = [[0] * 700 + [-1] * 350, [-1] * 20 + [5] * 1000 + [-1] * 30]
    reals = [[1] * 1050, [0] * 20 + [1] * 1030]
    assert_equals_the_loop(rows, device, reals=reals, queries=1)
    assert_equals_the_loop([row[:1030] for row in rows], device, queries=1, window=50)
    assert compilations() == 1


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_keys_with_gaps_between_them(device, compilations):
    for padding in (3, 60):
        rows = [[0] * 100 + [-1] * padding + [1] * 200]
        real = [1] * 100 + [0] * padding + [1] * 200
        tensors = inputs(rows, device=device)
        with torch.no_grad():
            got = attend(tensors, rows, [real])
        want = loop_attention(*(tensor.cpu() for tensor in tensors), loop_mask(rows, reals=[real]))
        read = torch.tensor(real) != 0  # what a padding query sees is not laid down
        torch.testing.assert_close(got.cpu().double()[:, :, read], want[:, :, read], atol=1e-5, rtol=1e-5)
    assert compilations() == 1


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_errs_no_more_than_the_stock_kernel_does(device, dtype):
    tensors = inputs(SHORT, dtype=dtype, device=device)
    mask = loop_mask(SHORT)
    want = loop_attention(*(tensor.cpu() for tensor in tensors), mask)
    query, key, value = tensors
    groups = [tensor.repeat_interleave(HEADS // KEY_HEADS, dim=1) for tensor in (key, value)]
    stock = torch.nn.functional.scaled_dot_product_attention(query, *groups, attn_mask=mask.to(device))
    with torch.no_grad():
        got = attend(tensors, SHORT)
    assert got.dtype == dtype
    assert (got.cpu().double() - want).abs().max() <= 1.5 * (stock.cpu().double() - want).abs().max()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here; FlexAttention has no backward on CPU")
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradients_equal_those_of_the_reference(softcap, compilations):
    for rows, reals, window in ((SHORT, None, None), (PADDED, PADDED_REAL, None), (LONG, None, 70)):
        grads = []
        for backend in ("flex", "reference"):
            dtype = torch.float32 if backend == "flex" else torch.float64
            tensors = [tensor.to(dtype).requires_grad_() for tensor in inputs(rows, device="cuda")]
            real = None if reals is None else torch.tensor(reals, device="cuda")
            output = segattn.segment_attention(
                *tensors, torch.tensor(rows, device="cuda"), real, sliding_window=window, softcap=softcap,
                backend=backend,
            )  # fmt: skip
            weight = torch.linspace(-1, 1, output.numel(), device="cuda", dtype=dtype).view_as(output)
            (output * weight).sum().backward()
            grads.append([tensor.grad.double() for tensor in tensors])
        for got, want in zip(*grads, strict=True):
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert compilations() == 1


def test_gradients_are_refused_on_cpu():
    tensors = [tensor.requires_grad_() for tensor in inputs([[0, 0]])]
    with pytest.raises(segattn.UnsupportedModelError, match="no backward pass on CPU"):
        attend(tensors, [[0, 0]])


def test_double_precision_is_refused():
    with pytest.raises(segattn.UnsupportedModelError, match=r"no kernel for torch\.float64; use backend='dense'"):
        attend(inputs([[0, 0]], dtype=torch.float64), [[0, 0]])


def test_small_heads_are_refused_on_accelerators():
    # Tensors without data stand in for a device that is not the CPU.
    query, key, value = (torch.empty(1, 1, 2, 8, device="meta") for _ in range(3))
    mask = segattn.block_mask(torch.tensor([[0, 0]]))
    with pytest.raises(segattn.UnsupportedModelError, match="heads of 16 numbers or more on meta, and these have 8"):
        flex.flex_attention(query, key, value, mask, scale=1.0, softcap=None)
