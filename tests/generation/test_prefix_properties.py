"""Random requests against a stock model without a cache: whatever is reused, tokens and logits are the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.serving import ask, ask_by_hand, make
from modeling.generating import assert_same
from segattn.generation import pieces, prefix_tree

NAMES = ["llama", "mistral-window", "gemma3"]
# Few kinds of tokens and short runs, so that prompts often share beginnings, and often part of a segment.
RUN = st.tuples(st.lists(st.integers(3, 4), min_size=1, max_size=4), st.booleans())


@st.composite
def rows(draw):
    """A prompt: (token ids, segment ids) of up to five runs."""
    runs = draw(st.lists(RUN, min_size=1, max_size=5))
    ids = [token for run, _ in runs for token in run]
    return ids, [number if inside else -1 for number, (run, inside) in enumerate(runs) for _ in run]


@st.composite
def requests(draw):
    """Batches one after another; a row may go on from an earlier row and its answer, as a conversation does."""
    batches, known = [], []
    for _ in range(draw(st.integers(2, 5))):
        batch = []
        for _ in range(draw(st.integers(1, 3))):
            ids, segments = draw(rows())
            if known and draw(st.booleans()):
                before, before_segments = draw(st.sampled_from(known))
                keep = draw(st.integers(1, len(before)))
                ids = before[:keep] + ids
                unused = max(before_segments) + 1
                segments = before_segments[:keep] + [-1 if number < 0 else number + unused for number in segments]
            batch.append((ids, segments))
        known += batch
        batches.append(batch)
    return batches


def run(name, batches, max_bytes):
    model, cache = make(name, max_bytes=max_bytes)
    for batch in batches:
        got = ask(model, cache, batch, max_new_tokens=2)
        assert_same(got, ask_by_hand(name, batch, max_new_tokens=2))
        assert cache.stats().bytes <= max_bytes
        check_tree(cache)
    return cache.stats()


def check_tree(cache):
    """The books agree with the tree: bytes, entries, leaves, no child without its parent."""
    tree, found = cache._tree, []
    for root in tree.roots.values():
        waiting = [root]
        while waiting:
            node = waiting.pop()
            for child in node.children.values():
                assert child.parent is node
                waiting.append(child)
                found.append(child)
    assert tree.entries == len(found)
    assert tree.nbytes == sum(node.nbytes for node in found)
    assert set(tree._leaves) == {node for node in found if not node.children}
    assert all(size == node.nbytes for node, size in tree._leaves.items())
    for node in found:
        assert all(part.shape[-2] == len(node.piece.tokens) for layer in node.states for part in layer)
        assert all(part._base is None for layer in node.states for part in layer), "a view would keep more alive"


SIZES = st.sampled_from([10**9, 3_000, 8_000, 20_000])


@given(name=st.sampled_from(NAMES), batches=requests(), max_bytes=SIZES)
@settings(max_examples=60, deadline=None)
def test_the_same_tokens_as_without_a_cache(name, batches, max_bytes):
    run(name, batches, max_bytes)


def test_the_property_fails_if_part_of_a_segment_is_reused(monkeypatch):
    """Sabotage: segments are found by their first token, and matched as far as their tokens agree."""
    monkeypatch.setattr(prefix_tree, "_key", lambda piece: (piece.is_segment, piece.tokens[:1]))
    monkeypatch.setattr(prefix_tree.PrefixTree, "_split", lambda self, node, count: node)
    monkeypatch.setattr(pieces.Row, "cut_at_most", lambda self, count: count)
    monkeypatch.setattr("segattn.generation.prefix_cache.cuttable", lambda ids: torch.ones(ids.shape[1] + 1).bool())
    monkeypatch.setattr("segattn.modeling.inputs.cut_segment", lambda ids, position: None)
    with pytest.raises(AssertionError):
        _run_sabotaged()


def _run_sabotaged():
    model, cache = make()
    one = ([3, 4, 5, 6, 7, 8, 9], [0] * 6 + [-1])
    other = ([3, 4, 5, 16, 17, 18, 9], [0] * 6 + [-1])
    for row in (one, other):
        assert_same(ask(model, cache, [row], max_new_tokens=2), ask_by_hand("llama", [row], max_new_tokens=2))


def test_without_the_sabotage_the_same_requests_pass():
    _run_sabotaged()


@pytest.mark.parametrize(
    "forget",
    [
        ("segattn.generation.prefix_tree._key", lambda piece: piece.tokens),
        ("segattn.generation.prefix_tree._shared", lambda stored, wanted: min(len(stored), len(wanted))),
    ],
    ids=["whether a token stands in a segment", "which token it is"],
)
def test_the_property_fails_if_the_cache_forgets(forget, monkeypatch):
    monkeypatch.setattr(*forget)
    batches = [[([3, 4, 8, 9], [0, 0, 0, -1])], [([3, 4, 8, 9, 9], [-1, -1, -1, 1, 1])]]
    batches += [[([7, 5, 6, 9, 9], [-1] * 5)], [([7, 6, 5, 9, 9], [-1] * 5)]]
    with pytest.raises(AssertionError):
        run("llama", batches, 10**9)
