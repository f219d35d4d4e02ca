"""Random cases for the fuzz test: which model, which text, and how it is handed over, all drawn from one seed."""

import dataclasses
import functools
import itertools
import random

import torch

from families import tiny_models
from modeling import tiny

# Families of tests/families, as different as they come: learned, rotary and ALiBi positions, fused projections,
# encoders run as decoders, windows, chunks, sinks, experts, latent attention, reused keys and values.
OTHERS = ("gpt2", "gptj", "gpt_neox", "gpt_bigcode", "bloom", "falcon", "opt", "mpt", "phi3", "cohere2", "olmo3")
OTHERS += ("exaone4", "llama4_text", "gpt_oss", "mixtral", "qwen3_moe", "deepseek_v3", "stablelm", "starcoder2")
OTHERS += ("modernbert-decoder", "gemma4_text", "granite", "nemotron", "bert", "bart")
FAMILIES = (*tiny.FAMILIES, *OTHERS)

EAGER_ONLY = frozenset({"gemma2", "gptj", "bloom", "mpt", "gpt_oss"})
# What computes attention slice by slice; of families that run eagerly, those that transformers has no SDPA for.
NO_SLICES = frozenset({"falcon", "gemma4_text"})
EAGER_SLICES = frozenset({"gemma2", "gpt_oss"})
# Their stock masks do not look at position_ids, so the documents of a packed row see each other there.
NO_PACKING = frozenset({"bloom", "falcon", "opt", "mpt", "gpt_oss", "bert", "bart"})
NO_STATIC_CACHE = frozenset({"bloom"})  # stock: with a padding mask, its positions do not fit the cache's length
NO_BACKBONE = frozenset({"llama4_text"})  # get_decoder() and base_model give the whole model
CACHE_IS_ASKED_FOR = frozenset({"mpt"})  # by use_cache=True; the others do so by default
# Shorter than, as long as and longer than segments; None: what the family's table says.
WINDOWS = {
    "mistral-window": (2, 4, 9, 40),
    "gemma2": (3, 9),
    "gemma3": (2, 5, 40),
    "qwen2-window": (3, 40),
    "cohere2": (3, 7, 40),
    "gpt_oss": (3, 9),
    "olmo3": (4, 40),
    "phi3": (4, 10),
    "llama4_text": (3, 8, 40),
    "gemma4_text": (4, 9),
    "modernbert-decoder": (6, 20),
}
WINDOW_NAMES = {"llama4_text": "attention_chunk_size", "modernbert-decoder": "local_attention"}

PATTERNS = ("random", "random", "random", "one", "alternating", "causal")
PADDINGS = ("none", "left", "right", "both")
LARGEST = {torch.int32: 2**31 - 1, torch.int64: 2**62}


@dataclasses.dataclass(frozen=True)
class Case:
    """Everything that was drawn; its repr is what a failing test prints."""

    seed: int
    family: str
    window: int | None
    backend: str
    pieces: tuple  # tokens per call: more than one call continues on a cache
    patterns: tuple  # of the segments, by row
    paddings: tuple  # by row; "whole" is a row of padding only
    rows: list
    reals: list
    documents: list | None  # of packed rows
    positions: list | None
    mask_given: bool
    mask_dtype: torch.dtype
    cache: str
    spare: int  # places of a static cache that stay empty
    use_cache_given: bool
    embeds: bool
    from_segmenter: bool
    dtype: torch.dtype
    flat: bool  # one row as (length,)
    short: bool  # without the causal tail
    silent_steps: bool  # single tokens get no ids
    backbone: bool  # called instead of the whole model
    slices: bool  # computed in the place of a mask
    bad_call: str | None  # made on the same model
    bad_call_before: int  # which call of the case

    @property
    def length(self):
        return sum(self.pieces)

    @property
    def holds_a_segment(self):
        """Whether a segment of two tokens or more makes a difference to the causal mask."""
        return any(a == b >= 0 for row in self.rows for a, b in itertools.pairwise(row))

    def segment_ids(self, end):
        """What the call that ends at `end` gets."""
        ids = torch.tensor(self.rows)[:, :end]
        if self.short:
            covered = int((ids >= 0).any(0).nonzero().max()) + 1 if (ids >= 0).any() else 1
            ids = ids[:, :covered]
        return (ids[0] if self.flat else ids).to(self.dtype)


def draw(seed, bad_calls=()):
    """The case of a seed."""
    rng = random.Random(seed)
    round_number, place = divmod(seed, len(FAMILIES))  # by turns, so that a few hundred cases hold every family
    family = FAMILIES[place]
    windows = WINDOWS.get(family, (None,))
    cache = rng.choice(("none", "none", "dynamic", "dynamic" if family in NO_STATIC_CACHE else "static"))
    packed = cache == "none" and family not in NO_PACKING and rng.random() < 0.3
    pieces = draw_pieces(rng, cache)
    dtype = rng.choice((torch.int64, torch.int64, torch.int32))
    batch = rng.randint(1, 4)
    rows = [draw_row(rng, pieces, packed, dtype, may_be_whole=b > 0) for b in range(batch)]
    patterns, paddings, ids, reals, documents = zip(*rows, strict=True)
    padded = any(padding != "none" for padding in paddings)
    embeds = rng.random() < 0.2
    backend = "eager" if family in EAGER_ONLY else rng.choice(("eager", "sdpa"))
    sliceable = family in EAGER_SLICES or (backend == "sdpa" and family not in NO_SLICES)
    return Case(
        seed=seed,
        family=family,
        window=windows[round_number % len(windows)],
        backend=backend,
        pieces=pieces,
        patterns=patterns,
        paddings=paddings,
        rows=list(ids),
        reals=list(reals),
        documents=list(documents) if packed else None,
        positions=draw_positions(rng, reals, documents, packed),
        mask_given=padded or (not packed and rng.random() < 0.5),
        mask_dtype=rng.choice((torch.int64, torch.bool, torch.float32)),
        cache=cache,
        spare=rng.randint(0, 3),
        use_cache_given=packed or family in CACHE_IS_ASKED_FOR or rng.random() < 0.5,
        embeds=embeds,
        from_segmenter=not embeds and rng.random() < 0.3,
        dtype=dtype,
        flat=batch == 1 and rng.random() < 0.3,
        short=rng.random() < 0.3,
        silent_steps=rng.random() < 0.5,
        backbone=family not in NO_BACKBONE and rng.random() < 0.1,
        slices=sliceable and rng.random() < 0.7,
        bad_call_before=rng.choice((0, 1)) if len(pieces) > 1 else 0,
        bad_call=bad_calls[seed // 3 % len(bad_calls)] if bad_calls and seed % 3 == 0 else None,
    )


def draw_pieces(rng, cache):
    if cache == "none":
        return (rng.randint(1, 24),)
    chunks = [rng.randint(1, 7) for _ in range(rng.randint(1, 3))]
    steps = [1] * rng.randint(0 if len(chunks) > 1 else 1, 3)
    return (*chunks, *steps)


def draw_row(rng, pieces, packed, dtype, may_be_whole):
    """(pattern, padding, ids, real, documents) of one row; no segment crosses the end of a piece or document."""
    length = sum(pieces)
    padding = "none" if packed else rng.choice(PADDINGS)
    left = rng.randint(1, length - 1) if padding in ("left", "both") and length > 1 else 0
    right = rng.randint(1, length - 1 - left) if padding in ("right", "both") and length - left > 1 else 0
    if may_be_whole and not packed and rng.random() < 0.05:
        padding, left, right = "whole", length, 0
    starts = [0, *sorted(rng.sample(range(1, length), min(length - 1, rng.randint(1, 3))))] if packed else [0]
    documents = [sum(start <= place for start in starts) for place in range(length)]
    ends = {sum(pieces[: number + 1]) for number in range(len(pieces))}
    borders = sorted({left, length - right} | {place for place in ends | set(starts) if left < place < length - right})
    largest = LARGEST[dtype] if rng.random() < 0.3 else length
    unused = rng.sample(range(largest), length)
    pattern, ids = rng.choice(PATTERNS), [-1] * left
    for start, end in itertools.pairwise(borders):
        ids += fill(rng, pattern, end - start, unused)
    ids += [-1] * (length - len(ids))
    return pattern, padding, ids, [int(left <= place < length - right) for place in range(length)], documents


def fill(rng, pattern, length, unused):
    """Segment ids of a stretch that segments may fill."""
    if pattern in ("one", "causal"):
        return [unused.pop() if pattern == "one" else -1] * length
    ids, causal = [], rng.random() < 0.5
    while len(ids) < length:
        longest = length - len(ids)
        run = rng.randint(1, min(3, longest) if pattern == "alternating" else longest)
        ids += [-1 if causal else unused.pop()] * run
        causal = not causal if pattern == "alternating" else rng.random() < 0.4
    return ids


def draw_positions(rng, reals, documents, packed):
    """Positions that count real tokens, those of packed rows from the start of their document; or None."""
    if packed:
        return [[place - row.index(document) for place, document in enumerate(row)] for row in documents]
    if rng.random() < 0.5:
        return None
    first = rng.choice((0, 0, 5))
    return [[first + max(sum(real[: place + 1]) - 1, 0) for place in range(len(real))] for real in reals]


class Asked:
    """Stands for a segmenter; an answer that nobody expects to be asked for is an error."""

    answer = None

    def segment_ids(self, input_ids, attention_mask=None):
        assert self.answer is not None, "the segmenter was asked though segment_ids were given"
        return self.answer

    def to_dict(self):
        return {}


def build(family, window, backend):
    """A stock model of the family."""
    options = {} if window is None else {WINDOW_NAMES.get(family, "sliding_window"): window}
    builder = tiny.build if family in tiny.FAMILIES else tiny_models.build
    return builder(family, backend, **options)


@functools.cache
def models(family, window, backend, slices):
    """A stock model, an enabled one with the same weights, and its segmenter; the same objects for every case."""
    import segattn

    stock, segmenter = build(family, window, backend), Asked()
    enabled = segattn.enable(build(family, window, backend), segmenter, backend="sliced" if slices else "dense")
    return stock, enabled, segmenter
