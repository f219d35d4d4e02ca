"""What a tree finds and lets go, with tensors that say which token they belong to."""

import pytest
import torch

from segattn.generation.pieces import Piece, pieces_of
from segattn.generation.prefix_tree import PrefixTree

SIZE = 2 * 4 + 8  # a float32 key, a float32 value, the id


def tree_of(*rows, max_bytes=10**6):
    tree = PrefixTree(max_bytes)
    for row in rows:
        put(tree, row)
    return tree


def put(tree, row, root="model"):
    """Rows are written as "ab|cd.e": segments ab and cd, causal run e."""
    text = torch.tensor([float(token) for token, _ in parsed(row)])

    def states(start, end):
        part = text[start:end].reshape(1, 1, -1, 1)
        return ((part.clone(), -part.clone()),)

    tree.insert(root, pieces(row), states)


def parsed(row):
    tokens, segment = [], 0
    for sign in row:
        if sign in "|.":
            segment = segment + 1 if sign == "|" else -1 - abs(segment)
        else:
            tokens.append((ord(sign), segment))
    return tokens


def pieces(row):
    return pieces_of(
        [token for token, _ in parsed(row)], [segment if segment >= 0 else -1 for _, segment in parsed(row)]
    )


def found(tree, row, root="model"):
    """The known beginning, read back from the stored keys and values."""
    text = ""
    for match in tree.match(root, pieces(row)):
        keys, values = match.states[0]
        assert torch.equal(keys, -values)
        text += "".join(chr(int(key)) for key in keys[0, 0, : match.count, 0])
    return text


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ("ab|cd.efg", "abcdefg"),
        ("ab|cd.efgh", "abcdefg"),
        ("ab|cd.exy", "abcde"),
        ("ab|cd.ef|xy", "abcdef"),
        ("ab|ce.fg", "ab"),
        ("ab|c.defg", "ab"),
        ("ab|cde.fg", "ab"),
        ("abc|d.efg", ""),
        (".abcdefg", ""),
        ("ab.cd", "ab"),
        ("x", ""),
    ],
)
def test_a_segment_is_found_whole_and_a_causal_run_up_to_a_difference(row, want):
    assert found(tree_of("ab|cd.efg"), row) == want


def test_roots_share_nothing():
    tree = tree_of("ab.cd")
    assert found(tree, "ab.cd", "other") == ""
    put(tree, "ab.cd", "other")
    assert tree.entries == 4


def test_a_causal_run_is_cut_in_two_where_rows_part():
    tree = tree_of("ab.cdef", "ab.cdxy", "ab.cd|gh", "ab.c|ij")
    for row in ("ab.cdef", "ab.cdxy", "ab.cd|gh", "ab.c|ij"):
        assert found(tree, row) == "".join(sign for sign in row if sign.isalpha())
    assert tree.nbytes == len("ab" + "cd" + "ef" + "xy" + "gh" + "ij") * SIZE
    assert tree.entries == 7  # ab, c, d, ef, xy, gh, ij


def test_the_leaf_that_was_used_longest_ago_goes_first():
    tree = tree_of("ab|cd", "ab|ef", "ab|gh", max_bytes=8 * SIZE)
    assert found(tree, "ab|cd") == "abcd"
    put(tree, "ab|ij")
    assert [found(tree, row) for row in ("ab|ef", "ab|gh", "ab|cd", "ab|ij")] == ["ab", "abgh", "abcd", "abij"]
    put(tree, "klmnopqr")
    assert (tree.entries, tree.evictions) == (1, 5)
    assert found(tree, "klmnopqr") == "klmnopqr"


def test_a_prefix_is_never_let_go_for_its_own_end():
    tree = tree_of("ab|cd|ef|gh", max_bytes=5 * SIZE)
    assert found(tree, "ab|cd|ef|gh") == "abcd"
    assert (tree.entries, tree.evictions) == (2, 0)
    put(tree, "xyzxyz")
    assert found(tree, "ab|cd") == "abcd", "nothing is let go for what would not fit anyway"


def test_a_snapshot_attaches_again_in_its_order():
    tree = tree_of("ab.cdef", "ab.cdxy", "ab|gh")
    again, kept = PrefixTree(10**6), []
    for parent, piece, states in tree.snapshot("model"):
        kept.append(again.attach("other", kept[parent] if parent >= 0 else None, piece, states))
    assert (again.nbytes, again.entries) == (tree.nbytes, tree.entries)
    assert found(again, "ab.cdxy", "other") == "abcdxy"
    assert again.attach("other", None, Piece((97, 98), is_segment=True), ()) is None, "it is there already"
