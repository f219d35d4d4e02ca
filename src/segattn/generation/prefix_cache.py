"""Keys and values of finished segments, computed once and shared by later requests."""

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from segattn.errors import SegmentError, UnsupportedModelError
from segattn.generation.assembly import assemble, copied, empty_cache, states_between
from segattn.generation.errors import PrefixCacheError
from segattn.generation.lining_up import complete_rows
from segattn.generation.model_identity import check_model, counts_positions, setting_of, weights_version
from segattn.generation.options import check_options, copies_of
from segattn.generation.pieces import Piece, Row, rows_of
from segattn.generation.prefix_file import read_prefixes, write_prefixes
from segattn.generation.prefix_tree import Match, PrefixTree, StoredPiece
from segattn.generation.requests import PrefixRequest, end_tokens, known_lengths, settled_ids, with_answer
from segattn.generation.statistics import CacheStatistics
from segattn.modeling.adapters import refuse_virtual_tokens
from segattn.modeling.families import pretrained_model_of
from segattn.modeling.generation import padding_mask
from segattn.modeling.prefill import cuttable

__all__ = ["PrefixCache"]

_WORTH_LINING_UP = 0.1
"""Rows that share no column are brought up to one if this share of their tokens need not be computed then."""


class PrefixCache:
    """Finished segments of one model, kept up to a number of bytes and shared by its requests.

    `model.generate(**batch, prefix_cache=cache)` reuses the longest prefix that it knows, and adds what is new. A
    segment is reused whole or not at all, a causal run up to any token, both only behind exactly the same tokens. The
    least recently used pieces go first when room is needed. Safe to use from several threads.

    Args:
        model: a transformers model, enabled (or plain, whose prompts are then causal); PEFT-wrapped or not.
        max_bytes: how much memory keys, values and token ids may take, on the model's own device. What is larger by
            itself is not kept.

    Raises:
        PrefixCacheError: `max_bytes` is no positive number.
        UnsupportedModelError: a model whose cache cannot be cut at a token: recurrent states, encoder-decoder, ...
    """

    def __init__(self, model: Any, *, max_bytes: int) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise PrefixCacheError(f"max_bytes is {max_bytes!r}; expected the most bytes to keep, an int >= 1")
        self.model = pretrained_model_of(model)
        check_model(self.model)
        self._tree = PrefixTree(max_bytes)
        self._lock = threading.Lock()
        self._weights = weights_version(self.model)
        self._counts = CacheStatistics()

    @property
    def max_bytes(self) -> int:
        """The most bytes that are kept."""
        return self._tree.max_bytes

    def __len__(self) -> int:
        """Return the number of pieces that are kept."""
        return self._tree.entries

    def __bool__(self) -> bool:
        return True  # an empty cache is one

    def __repr__(self) -> str:
        counts = self.stats()
        return (
            f"PrefixCache({type(self.model).__name__}, {counts.entries} pieces, {counts.bytes} of {self.max_bytes} "
            f"bytes, {counts.hit_rate:.0%} of {counts.tokens_reused + counts.tokens_computed} tokens reused)"
        )

    def stats(self) -> CacheStatistics:
        """Return what the cache has done and holds."""
        with self._lock:
            tree = self._tree
            return replace(self._counts, bytes=tree.nbytes, entries=tree.entries, evictions=tree.evictions)

    def clear(self) -> None:
        """Let go of everything that is kept; the counts go on."""
        with self._lock:
            self._tree.clear()

    def begin(
        self, input_ids: Tensor, segment_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> PrefixRequest:
        """Look up a batch, and fill a cache with as much of it as is known; `finish` keeps what was then computed.

        Rows of different lengths are brought up to one column first, where that saves work.

        Args:
            input_ids: int64 (batch, length), padded on the left.
            segment_ids: int64 (batch, length); None derives them with the model's segmenter, or takes all tokens for
                causal where the model is not enabled or runs in `segattn.causal(model)`.
            attention_mask: (batch, length), 0 marks padding.

        Returns:
            the request; pass its `past_key_values` on to `generate`, with the whole prompt.

        Raises:
            SegmentError: ids that are missing, malformed or do not fit.
            UnsupportedModelError: the model is in training mode, or gets segments without being enabled.
        """
        ids, rows = self._read(input_ids, segment_ids, attention_mask)
        setting, weights, matches = self._match(rows)
        columns, reused, matches = self._lined_up(ids, rows, matches)
        with self._lock:
            self._counts = self._counts.plus(reused, [row.length for row in rows])
        filled = [(row.padding, found) for row, found in zip(rows, matches, strict=True)]
        past = assemble(self.model.config, filled, columns) if columns else empty_cache(self.model.config)
        return PrefixRequest(past, columns, reused, rows, setting, weights)

    def finish(self, request: PrefixRequest, sequences: Any = None) -> None:
        """Keep what a request has computed.

        Args:
            request: what `begin` returned, after its `past_key_values` went through `generate` or a forward pass.
            sequences: what `generate` returned, int64 (batch, length) or an output that holds it. Generated tokens are
                kept as a causal run where each row has one sequence; None keeps the prompt only.
        """
        cache = request.past_key_values
        held = int(cache.get_seq_length())
        if not request.rows or not held or weights_version(self.model) != request.weights:
            return
        rows_held = next(layer.keys.shape[0] for layer in cache.layers if layer.keys is not None)
        copies = rows_held // len(request.rows)
        sequences = getattr(sequences, "sequences", sequences)
        for number, row in enumerate(request.rows):
            pieces = row.pieces
            if isinstance(sequences, Tensor) and copies == 1:
                pieces = with_answer(row, sequences[number, :held].tolist(), end_tokens(self.model))
            self._keep(request, pieces, cache, number * copies, row.padding)

    def fill(self, input_ids: Tensor, segment_ids: Tensor | None = None, attention_mask: Tensor | None = None) -> int:
        """Compute and keep prompts before anyone asks for them: a system prompt, documents.

        Args:
            input_ids: int64 (batch, length), padded on the left.
            segment_ids: int64 (batch, length), see `begin`.
            attention_mask: (batch, length), 0 marks padding.

        Returns:
            how many tokens were computed, 0 where all were known.

        Raises:
            SegmentError: see `begin`; also padding that no prefix can be kept behind.
        """
        _, rows = self._read(input_ids, segment_ids, attention_mask)
        if not rows:
            raise SegmentError(
                "fill() got rows whose padding is not on the left, or a model whose positions count padding; pass such "
                "prompts one by one, without padding"
            )
        setting, weights, matches = self._match(rows)
        lengths, known = [row.length for row in rows], known_lengths(rows, matches)
        complete = complete_rows(self.model, rows, matches, lengths, known)
        for row, found in zip(rows, complete, strict=True):
            past = assemble(self.model.config, [(0, found)], row.length)
            self.finish(PrefixRequest(past, 0, [], [replace(row, padding=0)], setting, weights))
        return sum(lengths) - sum(known)

    def generate_with(self, model: Any, given: dict[str, Any], run: Callable[..., Any]) -> Any:
        """Run one call of `generate` of an enabled model on this cache.

        Args:
            model: whose `generate` was called.
            given: the call's arguments by name, `segment_ids` settled.
            run: the stock `generate`; takes `past_key_values` beside the call's own arguments.

        Raises:
            PrefixCacheError: the cache belongs to another model.
            UnsupportedModelError: an option that cannot be served exactly.
        """
        if model is not self.model:
            raise PrefixCacheError(
                f"prefix_cache belongs to another {type(self.model).__name__}; make one for this model: "
                "segattn.PrefixCache(model, max_bytes=...)"
            )
        check_options(model, given)
        prompt = next((given[name] for name in ("inputs", "input_ids") if given.get(name) is not None), None)
        if prompt is None:
            raise SegmentError("generate() with prefix_cache got no input_ids; expected int64 (batch, length)")
        request = self.begin(prompt, given.get("segment_ids"), padding_mask(model, given))
        copied(request.past_key_values, copies_of(model, given))
        output = run(past_key_values=request.past_key_values)
        self.finish(request, output)
        return output

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what is known under the model's present adapters to one safetensors file.

        Args:
            path: the file. It is written beside its place and moved there when complete.

        Raises:
            PrefixCacheError: the file cannot be written.
        """
        setting, weights = setting_of(self.model), weights_version(self.model)
        with self._lock:
            pieces = self._tree.snapshot(setting) if weights == self._weights else []
        write_prefixes(path, self.model, pieces)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any, *, max_bytes: int) -> "PrefixCache":
        """Read a file that `save` wrote, for the same model with the same adapters.

        Args:
            path: the file.
            model: the model that it was saved for.
            max_bytes: see `PrefixCache`; pieces that no longer fit are left out.

        Raises:
            PrefixCacheError: a file that is damaged, of another format, or saved for another model or other adapters.
        """
        cache = cls(model, max_bytes=max_bytes)
        setting = setting_of(cache.model)
        kept: list[StoredPiece | None] = []
        for parent, piece, states in read_prefixes(path, cache.model):
            under = kept[parent] if parent >= 0 else None
            lost = parent >= 0 and under is None
            kept.append(None if lost else cache._tree.attach(setting, under, piece, states))
        return cache

    def _read(
        self, input_ids: Tensor, segment_ids: Tensor | None, attention_mask: Tensor | None
    ) -> tuple[Tensor, list[Row]]:
        """Check a batch; returns its segment ids (batch, length), and its rows where prefixes are kept for them."""
        state = vars(self.model).get("_segattn_state")
        if self.model.training:
            raise UnsupportedModelError(
                "the model is in training mode, where dropout makes keys differ from pass to pass; call model.eval()"
            )
        if state is not None:
            refuse_virtual_tokens(state)
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise SegmentError(
                f"attention_mask has shape {tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)}; "
                "expected the same: with a prefix cache, the prompt is passed whole"
            )
        ids = settled_ids(state, input_ids, segment_ids, attention_mask)
        rows = rows_of(input_ids, ids, attention_mask) or []
        if any(row.padding for row in rows) and not counts_positions(self.model):
            rows = []  # its positions count the padding, so that a row's keys depend on it
        return ids, rows

    def _match(self, rows: list[Row]) -> tuple[tuple[Any, ...], tuple[Any, ...], list[list[Match]]]:
        """Look rows up; returns the setting and the weights that this holds for, and what is known of each row."""
        setting, weights = setting_of(self.model), weights_version(self.model)
        with self._lock:
            if weights != self._weights:
                self._tree.clear()
                self._weights = weights
            return setting, weights, [self._tree.match(setting, row.pieces) for row in rows]

    def _lined_up(
        self, ids: Tensor, rows: list[Row], matches: list[list[Match]]
    ) -> tuple[int, list[int], list[list[Match]]]:
        """Choose the column that all rows go on from; returns it, the tokens reused per row, and what fills it."""
        if not any(matches):
            return 0, [0] * len(rows), matches
        cuts = cuttable(ids).nonzero().flatten()
        known = known_lengths(rows, matches)
        last = int(cuts[cuts < ids.shape[1]].max())  # a token is left, which gives the next one
        shared = min(row.padding + count for row, count in zip(rows, known, strict=True))
        columns = int(cuts[cuts <= min(shared, last)].max())
        reused = [max(columns - row.padding, 0) for row in rows]
        wanted = [max(last - row.padding, 0) for row in rows]
        possible = [row.cut_at_most(min(count, want)) for row, count, want in zip(rows, known, wanted, strict=True)]
        if sum(possible) - sum(reused) < _WORTH_LINING_UP * sum(row.length for row in rows):
            return (columns, reused, matches) if any(reused) else (0, reused, matches)
        return last, possible, complete_rows(self.model, rows, matches, wanted, possible)

    def _keep(self, request: PrefixRequest, pieces: list[Piece], cache: Any, number: int, padding: int) -> None:
        with self._lock:
            if request.weights != self._weights:
                return  # trained meanwhile
            self._tree.insert(
                request.setting,
                pieces,
                lambda start, end: states_between(cache, number, padding + start, padding + end),
            )
