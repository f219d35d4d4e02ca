"""The keys and values of known prefixes, in a tree: a node holds one piece's own, so that beginnings are shared.

A path from a root is a known prefix. Token ids themselves are compared, never only a hash of them. Not thread-safe: the
cache that owns the tree holds a lock. The tensors are never written to after they were stored.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from segattn.generation.pieces import Piece

__all__ = ["KeysValues", "Match", "PrefixTree", "StoredPiece", "copied_pair"]

KeysValues = tuple[tuple[Tensor, Tensor] | None, ...]
"""Per layer, keys (1, heads, tokens, size) and values (1, heads, tokens, size); None for a layer that keeps none."""

_BYTES_PER_TOKEN_ID = 8


@dataclass(frozen=True)
class Match:
    """The first `count` tokens of one stored piece."""

    states: KeysValues
    count: int


@dataclass(eq=False)
class StoredPiece:
    """A node: a segment, or (part of) a causal run, under the prefix that leads to it."""

    piece: Piece
    states: KeysValues
    parent: "StoredPiece | None"
    children: "dict[Hashable, StoredPiece]" = field(default_factory=dict)
    last_used: int = 0

    @property
    def nbytes(self) -> int:
        """The memory of the keys, values and token ids."""
        tensors = [tensor for layer in self.states if layer is not None for tensor in layer]
        return sum(tensor.nbytes for tensor in tensors) + _BYTES_PER_TOKEN_ID * len(self.piece.tokens)


class PrefixTree:
    """Pieces of known prefixes, the least recently used ones let go when they take more than `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.roots: dict[Hashable, StoredPiece] = {}
        self.nbytes = 0
        self.entries = 0
        self.evictions = 0
        self._leaves: dict[StoredPiece, int] = {}  # with their bytes
        self._clock = 0

    def match(self, root: Hashable, pieces: list[Piece]) -> list[Match]:
        """Find the longest known prefix: all of every segment in it, and of its last causal run any part.

        Args:
            root: what the keys depend on beside the tokens.
            pieces: of one row.
        """
        path, _, _ = self._walk(root, pieces)
        self._touch(node for node, _ in path)
        return [Match(node.states, count) for node, count in path]

    def insert(self, root: Hashable, pieces: list[Piece], states_of: Callable[[int, int], KeysValues]) -> None:
        """Keep what of a row is not known yet, as far as there is room for it.

        Args:
            root: what the keys depend on beside the tokens.
            pieces: of one row.
            states_of: gives keys and values of the tokens from start to end, as tensors of their own.
        """
        path, number, offset = self._walk(root, pieces)
        start = sum(count for _, count in path)
        rest = pieces[number:]
        if offset:  # only in a causal run: a segment is known whole or not at all
            remaining = rest[0].tokens[offset:]
            rest = [Piece(remaining, is_segment=False), *rest[1:]] if remaining else rest[1:]
        node = path[-1][0] if path else self._root(root)
        if rest and path and path[-1][1] < len(node.piece.tokens):
            node = self._split(node, path[-1][1])
        self._touch(self._path_to(node))
        for piece in rest:
            states = states_of(start, start + len(piece.tokens))
            grown = self._add(node, piece, states)
            if grown is None:
                return
            node, start = grown, start + len(piece.tokens)

    def attach(
        self, root: Hashable, parent: StoredPiece | None, piece: Piece, states: KeysValues
    ) -> StoredPiece | None:
        """Put one piece under a stored one (None: at the beginning) if there is room; returns it if it was kept."""
        under = parent or self._root(root)
        node = StoredPiece(piece, states, under)
        if self.nbytes + node.nbytes > self.max_bytes or _key(piece) in under.children:
            return None
        return self._add(under, piece, states)

    def snapshot(self, root: Hashable) -> list[tuple[int, Piece, KeysValues]]:
        """Return all pieces under a root, each after its parent, those that were used last first.

        Returns:
            (number of the parent or -1, piece, keys and values).
        """
        found: list[tuple[int, Piece, KeysValues]] = []
        waiting = [(-1, child) for child in _by_use(self._root(root))]
        while waiting:
            parent, node = waiting.pop()
            waiting += [(len(found), child) for child in _by_use(node)]
            found.append((parent, node.piece, node.states))
        return found

    def clear(self) -> None:
        """Let go of everything; what was counted stays."""
        self.roots.clear()
        self._leaves.clear()
        self.nbytes = self.entries = 0

    def _root(self, root: Hashable) -> StoredPiece:
        return self.roots.setdefault(root, StoredPiece(Piece((), is_segment=False), (), None))

    def _walk(self, root: Hashable, pieces: list[Piece]) -> tuple[list[tuple[StoredPiece, int]], int, int]:
        """Follow the pieces; returns the nodes with how many tokens of each fit, and the place where that ended.

        The place is (number of the piece, offset in it).
        """
        node = self._root(root)
        path: list[tuple[StoredPiece, int]] = []
        for number, piece in enumerate(pieces):
            offset = 0
            while offset < len(piece.tokens):
                rest = Piece(piece.tokens[offset:], piece.is_segment)
                child = node.children.get(_key(rest))
                if child is None:
                    return path, number, offset
                count = _shared(child.piece.tokens, rest.tokens)
                path.append((child, count))
                offset += count
                if count < len(child.piece.tokens):
                    return path, number, offset
                node = child
        return path, len(pieces), 0

    def _touch(self, nodes: Iterable[StoredPiece]) -> None:
        self._clock += 1
        for node in nodes:
            node.last_used = self._clock

    @staticmethod
    def _path_to(node: StoredPiece) -> list[StoredPiece]:
        path, up = [], node
        while up.parent is not None:
            path.append(up)
            up = up.parent
        return path

    def _split(self, node: StoredPiece, count: int) -> StoredPiece:
        """Cut the node of a causal run in two; returns the first part."""
        parent, tokens, states = node.parent, node.piece.tokens, node.states
        assert parent is not None
        assert not node.piece.is_segment
        first = StoredPiece(Piece(tokens[:count], is_segment=False), _part(states, 0, count), parent)
        node.piece, node.states = Piece(tokens[count:], is_segment=False), _part(states, count, len(tokens))
        node.parent, first.last_used = first, node.last_used
        parent.children[_key(first.piece)] = first
        first.children[_key(node.piece)] = node
        if node in self._leaves:
            self._leaves[node] = node.nbytes
        self.entries += 1
        return first

    def _add(self, parent: StoredPiece, piece: Piece, states: KeysValues) -> StoredPiece | None:
        """Put a piece under its prefix; returns None where it is too large to keep."""
        node = StoredPiece(piece, states, parent, last_used=self._clock)
        size = node.nbytes
        if not self._make_room(parent, size):
            return None
        parent.children[_key(piece)] = node
        self._leaves.pop(parent, None)
        self._leaves[node] = size
        self.nbytes += size
        self.entries += 1
        return node

    def _make_room(self, parent: StoredPiece, size: int) -> bool:
        """Let go of the leaves that were used longest ago, but not of the new piece's own prefix."""
        prefix = set(self._path_to(parent))
        if sum(node.nbytes for node in prefix) + size > self.max_bytes:
            return False
        while self.nbytes + size > self.max_bytes:
            oldest = min((leaf for leaf in self._leaves if leaf not in prefix), key=lambda leaf: leaf.last_used)
            self._remove(oldest)
        return True

    def _remove(self, leaf: StoredPiece) -> None:
        parent = leaf.parent
        assert parent is not None
        del parent.children[_key(leaf.piece)]
        self.nbytes -= self._leaves.pop(leaf)
        self.entries -= 1
        self.evictions += 1
        if parent.parent is not None and not parent.children:
            self._leaves[parent] = parent.nbytes


def _by_use(node: StoredPiece) -> list[StoredPiece]:
    return sorted(node.children.values(), key=lambda child: child.last_used)


def _key(piece: Piece) -> Hashable:
    """Under which a child is found: a segment by all of its tokens, a causal run by its first one."""
    return (piece.is_segment, piece.tokens if piece.is_segment else piece.tokens[:1])


def _shared(stored: tuple[int, ...], wanted: tuple[int, ...]) -> int:
    """Return how many tokens two runs have in common at their beginning."""
    if stored == wanted[: len(stored)]:
        return len(stored)
    return next(place for place, (one, other) in enumerate(zip(stored, (*wanted, -1), strict=False)) if one != other)


def _part(states: KeysValues, start: int, end: int) -> KeysValues:
    """Copy the tokens from start to end, so that the rest can be let go."""
    return tuple(None if layer is None else copied_pair(*layer, start, end) for layer in states)


def copied_pair(keys: Tensor, values: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Copy the tokens from start to end of a layer's keys and values (..., tokens, size)."""
    first, second = (
        states[..., start:end, :].detach().clone(memory_format=torch.contiguous_format) for states in (keys, values)
    )
    return first, second
