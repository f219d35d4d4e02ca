"""A stand-in for vLLM's common attention metadata, and what its kernels would let each token see."""

from dataclasses import dataclass, replace

import torch


@dataclass
class Metadata:
    """The fields that are read or replaced, under vLLM's names."""

    query_start_loc: torch.Tensor
    query_start_loc_cpu: torch.Tensor
    seq_lens: torch.Tensor
    num_reqs: int
    num_actual_tokens: int
    max_query_len: int
    max_seq_len: int
    block_table_tensor: torch.Tensor
    slot_mapping: torch.Tensor
    causal: object = True
    is_prefilling: torch.Tensor | None = None
    seq_lens_cpu_upper_bound: torch.Tensor | None = None
    logits_indices_padded: object = None
    encoder_seq_lens: object = None
    dcp_local_seq_lens: object = None
    req_idx: object = None
    mm_req_doc_ranges: object = None
    rswa_prefix_lens: object = None
    replayssm_decode_base_cpu: object = None
    _num_computed_tokens_cache: torch.Tensor | None = None
    _token_to_req_indices_cache: torch.Tensor | None = None

    def replace(self, **changes):
        return replace(self, **changes)


def metadata_of(chunks, padded=0):
    """What vLLM builds for a step: one row for each request, given as (computed tokens, tokens of this step)."""
    chunks = [*chunks, *[(0, 0)] * (max(padded, len(chunks)) - len(chunks))]
    starts = [0]
    for _, tokens in chunks:
        starts.append(starts[-1] + tokens)
    ends = [computed + tokens for computed, tokens in chunks]
    count = len(chunks)
    return Metadata(
        query_start_loc=torch.tensor(starts, dtype=torch.int32),
        query_start_loc_cpu=torch.tensor(starts, dtype=torch.int32),
        seq_lens=torch.tensor(ends, dtype=torch.int32),
        num_reqs=count,
        num_actual_tokens=starts[-1],
        max_query_len=max(tokens for _, tokens in chunks),
        max_seq_len=max(ends),
        # The table of each request names it.
        block_table_tensor=torch.arange(count, dtype=torch.int32)[:, None].expand(count, 3).contiguous(),
        slot_mapping=torch.arange(starts[-1]),
        is_prefilling=torch.tensor([index % 2 == 0 for index in range(count)]),
        seq_lens_cpu_upper_bound=torch.tensor(ends, dtype=torch.int32),
        _num_computed_tokens_cache=torch.tensor([computed for computed, _ in chunks]),
    )


def seen(metadata):
    """(request, positions that it sees) of each token of a step, as a kernel reads the rows."""
    found = []
    for row in range(metadata.num_reqs):
        first, last = metadata.query_start_loc[row : row + 2].tolist()
        assert metadata.query_start_loc_cpu[row] == first
        assert last - first <= metadata.max_query_len
        length = int(metadata.seq_lens[row])
        assert length <= metadata.max_seq_len
        causal = metadata.causal if isinstance(metadata.causal, bool) else bool(metadata.causal[row])
        for query in range(last - first):
            visible = length - (last - first) + query + 1 if causal else length
            found.append((int(metadata.block_table_tensor[row, 0]), set(range(visible))))
    return found
