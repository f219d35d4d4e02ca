"""Requests to a prefix cache and to a stock model that knows no cache at all."""

import torch

import segattn
from modeling.generating import GREEDY, assert_same, build, generate_by_hand

MANY = 10**9


def batch_of(rows):
    """Left-pad rows of (token ids, segment ids) into a batch: (ids, segment ids, mask)."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[0] * (length - len(row)) + row for row, _ in rows])
    segments = [[-1] * (length - len(row)) + row for _, row in rows]
    reals = [[0] * (length - len(row)) + [1] * len(row) for row, _ in rows]
    return ids, segments, reals


def ask(model, cache, rows, **options):
    ids, segments, reals = batch_of(rows)
    inputs = {"attention_mask": torch.tensor(reals), "segment_ids": torch.tensor(segments), **GREEDY, **options}
    return model.generate(ids, prefix_cache=cache, **inputs)


def ask_by_hand(name, rows, implementation="sdpa", **options):
    ids, segments, reals = batch_of(rows)
    return generate_by_hand(name, implementation, ids, segments, reals, **{**GREEDY, **options})


def make(name="llama", max_bytes=MANY, implementation="sdpa", **options):
    model = segattn.enable(build(name, implementation, **options))
    return model, segattn.PrefixCache(model, max_bytes=max_bytes)


def check(name, model, cache, rows, **options):
    """Ask both; returns what was generated."""
    before = cache.stats()
    got = ask(model, cache, rows, **options)
    assert_same(got, ask_by_hand(name, rows, **options))
    after = cache.stats()
    return got, after.tokens_reused - before.tokens_reused


def words(length, seed):
    return torch.randint(3, 96, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def prompt(*runs):
    """A row of runs: (token ids, whether they are a segment); returns (ids, segment ids)."""
    ids = [token for run, _ in runs for token in run]
    return ids, [number if inside else -1 for number, (run, inside) in enumerate(runs) for _ in run]
