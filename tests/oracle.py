"""The segment rule written a second time, as a double loop over plain Python lists. Shares no code with the package."""

import torch


def may_see(segments, query, key, *, real=None, documents=None, window=None):
    """One row: may the token at `query` attend to the token at `key`?"""
    if real is not None and not real[key]:
        return False
    if documents is not None and documents[key] != documents[query]:
        return False
    if window is not None and abs(query - key) >= window:
        return False
    if key <= query:
        return True
    return segments[query] == segments[key] and segments[query] >= 0


def loop_mask(rows, *, reals=None, documents=None, window=None, queries=None):
    """A bool mask (batch, 1, queries, keys) from lists of segment ids."""
    keys = len(rows[0])
    first = keys - (queries or keys)
    return torch.tensor(
        [
            [
                [
                    [
                        may_see(
                            row,
                            query,
                            key,
                            real=None if reals is None else reals[b],
                            documents=None if documents is None else documents[b],
                            window=window,
                        )
                        for key in range(keys)
                    ]
                    for query in range(first, keys)
                ]
            ]
            for b, row in enumerate(rows)
        ]
    )


def loop_attention(query, key, value, mask, scale=None, softcap=None):
    """Attention in float64, head by head and query by query; a query that sees nothing gives zeros."""
    query, key, value = query.double(), key.double(), value.double()
    batch, heads, length, size = query.shape
    group = heads // key.shape[1]
    scale = size**-0.5 if scale is None else scale
    output = torch.zeros(batch, heads, length, value.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                seen = mask[b, 0, i].nonzero().flatten()
                if len(seen) == 0:
                    continue
                scores = key[b, h // group, seen] @ query[b, h, i] * scale
                if softcap is not None:
                    scores = softcap * (scores / softcap).tanh()
                output[b, h, i] = scores.softmax(0) @ value[b, h // group, seen]
    return output
