import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode

import segattn
from oracle import loop_mask
from segattn.blocks import block_mask_of, extended, length_class
from segattn.ranges import visible_ranges
from strategies import batches, fill, padded_batches

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
]


def asked(block):
    """A BlockMask evaluated through its own mask_mod, every pair of it."""
    batch, _, queries, keys = block.shape
    rows = [torch.arange(size).view([-1 if axis == i else 1 for i in range(3)]) for axis, size in
            enumerate((batch, queries, keys))]  # fmt: skip
    row, query, key = rows
    return block.mask_mod(row, torch.tensor(0), query, key)[:, None].expand(batch, 1, queries, keys)


def listed(counts, blocks):
    """The block lists of a BlockMask as sets: [row of the batch][row of blocks] -> which."""
    return [
        [set(which[:count].tolist()) for count, which in zip(row_counts, row_blocks, strict=True)]
        for row_counts, row_blocks in zip(counts[:, 0], blocks[:, 0], strict=True)
    ]


def folded(mask, size):
    """(partial, full) block sets of a dense mask, by looking into every block; what is cut short is not full."""
    partial, full = [], []
    for row in mask[:, 0]:
        queries, keys = row.shape
        partial.append([])
        full.append([])
        for q in range(0, queries, size):
            inside = [row[q : q + size, k : k + size] for k in range(0, keys, size)]
            whole = {k for k, block in enumerate(inside) if block.all() and block.numel() == size * size}
            full[-1].append(whole)
            partial[-1].append({k for k, block in enumerate(inside) if block.any()} - whole)
    return partial, full


def turned(sets, columns):
    """The same blocks, listed by column."""
    return [[{q for q, row in enumerate(rows) if k in row} for k in range(columns)] for rows in sets]


def assert_blocks(block, mask, size):
    partial, full = folded(mask, size)
    columns = -(-mask.shape[3] // size)
    assert listed(block.kv_num_blocks, block.kv_indices) == partial
    assert listed(block.full_kv_num_blocks, block.full_kv_indices) == full
    # What the backward pass reads.
    assert listed(block.q_num_blocks, block.q_indices) == turned(partial, columns)
    assert listed(block.full_q_num_blocks, block.full_q_indices) == turned(full, columns)


def test_the_drawing_in_the_docstring():
    block = segattn.block_mask(torch.tensor([[0, 0, 0, -1, -1]]), block_size=2)
    assert listed(block.kv_num_blocks, block.kv_indices) == [[{1}, {1}, {0, 1, 2}]]
    assert listed(block.full_kv_num_blocks, block.full_kv_indices) == [[{0}, {0}, set()]]
    assert block.shape == (1, 1, 5, 5)
    assert block.BLOCK_SIZE == (2, 2)


@settings(deadline=None)
@given(padded_batches(max_length=14), st.one_of(st.none(), st.integers(1, 6)), st.integers(1, 5), st.data())
def test_the_rule_and_its_blocks_equal_the_double_loop(batch, window, size, data):
    rows, reals = batch
    queries = data.draw(st.integers(1, len(rows[0])))
    block = segattn.block_mask(
        torch.tensor(rows), torch.tensor(reals), query_length=queries, sliding_window=window, block_size=size
    )
    mask = loop_mask(rows, reals=reals, window=window, queries=queries)
    assert torch.equal(asked(block), mask)
    assert_blocks(block, mask, size)


@settings(deadline=None)
@given(batches(max_rows=1), batches(max_rows=1), st.integers(0, 9), st.integers(1, 4))
def test_packed_documents_with_padding_between_and_behind_them(first, second, padding, size):
    row = first[0] + [-1] * padding + [s + 100 if s >= 0 else -1 for s in second[0]] + [-1] * padding
    documents = [1] * len(first[0]) + [0] * padding + [2] * len(second[0]) + [0] * padding
    block = segattn.block_mask(torch.tensor([row]), torch.tensor([documents]), block_size=size)
    real = [number != 0 for number in documents]
    read = torch.tensor(real)  # what a padding query sees is not laid down
    mask = loop_mask([row], reals=[real], documents=[documents])
    assert torch.equal(asked(block)[:, :, read], mask[:, :, read])
    assert_blocks(block, asked(block), size)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(100, 700), st.data())
def test_has_the_blocks_that_torch_finds_by_evaluation(batch, keys, data):
    ids = torch.tensor([fill_coarsely(data.draw, keys) for _ in range(batch)])
    left = data.draw(st.integers(0, keys - 1))
    real = torch.ones_like(ids)
    real[0, :left], ids[0, :left] = 0, -1
    queries, window = data.draw(st.integers(1, keys)), data.draw(st.one_of(st.none(), st.integers(1, 400)))
    block = segattn.block_mask(ids, real, query_length=queries, sliding_window=window)
    mask = segattn.segment_mask(ids, real, query_length=queries, sliding_window=window)
    torchs = create_block_mask(lambda b, h, q, k: mask[b, 0, q, k], batch, None, queries, keys, device="cpu")
    for count, blocks in (
        ("kv_num_blocks", "kv_indices"),
        ("full_kv_num_blocks", "full_kv_indices"),
        ("q_num_blocks", "q_indices"),
        ("full_q_num_blocks", "full_q_indices"),
    ):
        got, want = (listed(getattr(each, count), getattr(each, blocks)) for each in (block, torchs))
        assert got == want, count
        # The kernels read these as 32-bit numbers, in memory without gaps.
        assert getattr(block, count).dtype == getattr(block, blocks).dtype == torch.int32
        assert getattr(block, count).is_contiguous()
        assert getattr(block, blocks).is_contiguous()
    assert torch.equal(block.to_dense(), torchs.to_dense())
    assert block.shape == torchs.shape


def fill_coarsely(draw, length):
    """Ids in a few runs, so that whole blocks lie inside of them."""
    short = fill(draw, 8)
    cuts = sorted(draw(st.lists(st.integers(0, length), min_size=7, max_size=7)))
    widths = [end - start for start, end in zip([0, *cuts], [*cuts, length], strict=True)]
    return [s for s, width in zip(short, widths, strict=True) for _ in range(width)]


@pytest.mark.parametrize("device", DEVICES)
def test_blocks_that_nobody_sees_are_skipped(device):
    ids = segattn.spans_to_segment_ids([(0, 128), (128, 256)], 384).to(device)
    block = segattn.block_mask(ids)
    assert block.kv_num_blocks.device.type == device
    # Blocks of 128: each query block sees itself and the ones before it, of nine.
    assert block.to_dense().int().tolist() == [[[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]]


@pytest.mark.parametrize(
    ("rows", "documents"),
    [
        ([[0, 0, -1, -1, 1, 1, -1]], [[1, 1, 0, 1, 1, 1, 1]]),  # padding in the middle of a row
        ([[-1, 0, 0, -1, -1, -1]], [[1, 1, 1, 2, 1, 1]]),  # a document in two places
    ],
)
@pytest.mark.parametrize("queries", [None, 3])
def test_keys_with_gaps_between_them(rows, documents, queries):
    assert visible_ranges(torch.tensor(rows), torch.tensor(documents)) is None
    block = segattn.block_mask(torch.tensor(rows), torch.tensor(documents), query_length=queries, block_size=2)
    mask = loop_mask(rows, reals=documents, documents=documents, queries=queries)
    # What a padding query sees is not laid down.
    read = torch.tensor(documents[0][-mask.shape[2] :]) != 0
    assert torch.equal(asked(block)[:, :, read], mask[:, :, read])
    assert_blocks(block, asked(block), 2)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return made


def largest(n, documents=None):
    with Largest() as seen:
        segattn.block_mask(segattn.spans_to_segment_ids([(3, n // 2), (n // 2, n - 9)], n), documents)
    return seen.elements


def test_no_query_key_matrix_is_made():
    assert largest(2048) <= 2 * 2048 + 128


def test_this_test_can_fail():
    documents = torch.ones(512, dtype=torch.int64)
    documents[511], documents[508] = 1, 2
    assert largest(512, documents[None]) >= 512 * 512


def test_length_classes():
    assert [length_class(n) for n in (1, 2, 100, 128, 129, 256, 257, 384, 385, 512, 513, 768, 769, 1024, 1025)] == [
        1, 128, 128, 128, 256, 256, 384, 384, 512, 512, 768, 768, 1024, 1024, 1536,
    ]  # fmt: skip
    for n in range(129, 20_000, 7):
        assert n <= length_class(n) <= max(1.5 * n, n + 127)
        assert length_class(n) % 128 == 0
    assert len({length_class(n) for n in range(1, 2**17)}) == 21


@settings(deadline=None)
@given(padded_batches(max_length=14), st.integers(1, 5), st.integers(0, 9), st.integers(0, 9), st.data())
def test_filled_up_lengths_add_no_visible_key(batch, size, more_queries, more_keys, data):
    rows, reals = batch
    queries = data.draw(st.integers(2, len(rows[0])))
    short = segattn.block_mask(torch.tensor(rows), torch.tensor(reals), query_length=queries, block_size=size)
    block = extended(short, queries + more_queries, len(rows[0]) + more_keys)
    mask = torch.nn.functional.pad(loop_mask(rows, reals=reals, queries=queries), (0, more_keys, 0, more_queries))
    assert block.shape == tuple(mask.shape)
    assert torch.equal(asked(block), mask)
    partial, full = folded(mask[:, :, :queries, : len(rows[0])], size)
    added = -(-(queries + more_queries) // size) - len(partial[0])
    assert listed(block.kv_num_blocks, block.kv_indices) == [each + [set()] * added for each in partial]
    assert listed(block.full_kv_num_blocks, block.full_kv_indices) == [each + [set()] * added for each in full]


def test_ranges_known_already_give_the_same_mask():
    ids = torch.tensor([[-1, 0, 0, 0, 1, 1, -1]])
    got = block_mask_of(visible_ranges(ids, sliding_window=3, query_length=5), block_size=2)
    assert_blocks(got, loop_mask(ids.tolist(), window=3, queries=5), 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_length": 0}, "query_length is 0; expected 1 to 3"),
        ({"query_length": 4}, "query_length is 4; expected 1 to 3"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"block_size": 0}, "block_size is 0; expected a number of tokens >= 1"),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask must be a bool or integer"),
        ({"attention_mask": torch.tensor([[1, 2, 2]])}, "row 0, position 1: segment 0 runs across the border"),
    ],
)
def test_bad_arguments_say_what_was_given(arguments, message):
    with pytest.raises(segattn.SegmentError, match=message):
        segattn.block_mask(torch.tensor([[0, 0, 0]]), **arguments)
