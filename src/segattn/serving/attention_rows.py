"""A step's attention metadata with one row for each piece of a chunk, in place of one for each request.

To an attention kernel a row is some queries, the length of the cache that they see, and a causal flag. The keys and
values of a whole step are written before any row is computed, so the pieces of one request can be rows of one step:
each sees the cache up to its own end, through the same block table. (vLLM has rows of one request where it splits a
prefill over several devices.)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from segattn.serving.chunks import Piece
from segattn.serving.errors import ServingError

__all__ = ["Rows", "rows_of", "with_rows"]


# Fields with an entry for each request, of setups that are refused at the start: None here.
_UNUSED = (
    "logits_indices_padded",
    "encoder_seq_lens",
    "dcp_local_seq_lens",
    "req_idx",
    "mm_req_doc_ranges",
    "rswa_prefix_lens",
    "replayssm_decode_base_cpu",
)


class Rows(NamedTuple):
    """The rows of a step, in the order of its tokens.

    `request`: the index of each row's request. `tokens`: its queries. `later`: tokens of the same chunk behind it,
    which it does not see. `causal`: its flag. All [rows], `causal` int32 as the kernels want it, the others int64.
    """

    request: torch.Tensor
    tokens: torch.Tensor
    later: torch.Tensor
    causal: torch.Tensor


def rows_of(chunks: Sequence[Sequence[Piece]], requests: int) -> Rows:
    """Return the rows of a step, on the CPU.

    Args:
        chunks: the pieces of each request.
        requests: how many vLLM pads them to; the added ones have a row without queries each.
    """
    rows = [
        (index, piece.end - piece.start, chunk[-1].end - piece.end, piece.causal)
        for index, chunk in enumerate(chunks)
        for piece in chunk
    ] + [(index, 0, 0, True) for index in range(len(chunks), requests)]
    request, tokens, later, causal = (torch.tensor(column) for column in zip(*rows, strict=True))
    return Rows(request, tokens, later, causal.to(torch.int32))


def with_rows(metadata: Any, rows: Rows) -> Any:
    """Return vLLM's `CommonAttentionMetadata` of a step, split into rows.

    Raises:
        ServingError: the rows do not hold the step's tokens, or the metadata holds what cannot be split.
    """
    unknown = [name for name in _UNUSED if getattr(metadata, name) is not None]
    if unknown:
        raise ServingError(
            f"the attention metadata of a step with segments has {', '.join(unknown)}, which segattn does not split; "
            "expected None. Switch off the feature of vLLM that sets it"
        )
    starts_cpu = torch.cat([rows.tokens.new_zeros(1), rows.tokens.cumsum(0)]).to(metadata.query_start_loc_cpu.dtype)
    if int(starts_cpu[-1]) != int(metadata.query_start_loc_cpu[-1]):
        raise ServingError(
            f"a step of {int(metadata.query_start_loc_cpu[-1])} tokens was split into rows of {int(starts_cpu[-1])}; "
            "expected the same. vLLM changed under segattn: run its tests for this version of vLLM"
        )
    device = metadata.seq_lens.device
    request = rows.request.to(device, non_blocking=True)
    later = rows.later.to(device, metadata.seq_lens.dtype, non_blocking=True)
    changes = {
        "query_start_loc": starts_cpu.to(device, non_blocking=True),
        "query_start_loc_cpu": starts_cpu,
        "seq_lens": metadata.seq_lens[request] - later,
        "num_reqs": len(rows.request),
        "max_query_len": int(rows.tokens.max()),
        "block_table_tensor": metadata.block_table_tensor[request],
        "causal": rows.causal.to(device, non_blocking=True),
        # Made from the old rows, where they are there.
        "_num_computed_tokens_cache": None,
        "_token_to_req_indices_cache": None,
    }
    if metadata.seq_lens_cpu_upper_bound is not None:
        changes["seq_lens_cpu_upper_bound"] = metadata.seq_lens_cpu_upper_bound[rows.request] - rows.later.to(
            metadata.seq_lens_cpu_upper_bound.dtype
        )
    if metadata.is_prefilling is not None:
        changes["is_prefilling"] = metadata.is_prefilling[rows.request]
    return metadata.replace(**changes)
