"""vLLM's block hasher with the keys of segments added: what makes its prefix cache right under segments."""

from collections.abc import Callable
from typing import Any

from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys, hash_block_tokens

from segattn.serving.block_keys import keys_in_block, segment_keys
from segattn.serving.spans import Spans

__all__ = ["segment_block_hasher"]

BlockHasher = Callable[[Any], list[Any]]


def segment_block_hasher(
    hash_block_size: int, hash_function: Callable[[Any], bytes], spans_of_request: Callable[[Any], Spans]
) -> BlockHasher:
    """Return what computes the hashes of a request's new full blocks.

    As `vllm.v1.core.kv_cache_utils.get_request_block_hasher`, for requests of text: LoRA and cache-salt keys are vLLM's
    own, and blocks without segments have vLLM's own hashes.

    Args:
        hash_block_size: tokens of a block.
        hash_function: vLLM's `prefix_caching_hash_algo`.
        spans_of_request: the segments of a request; called once per request.
    """

    def hasher(request: Any) -> list[Any]:
        start = len(request.block_hashes) * hash_block_size
        if start + hash_block_size > request.num_tokens:
            return []
        keys = getattr(request, "segment_keys", None)
        if keys is None:
            keys = request.segment_keys = segment_keys(request.prompt_token_ids, spans_of_request(request))
        parent = request.block_hashes[-1] if request.block_hashes else None
        found = []
        for begin in range(start, request.num_tokens - hash_block_size + 1, hash_block_size):
            end = begin + hash_block_size
            extra, _ = generate_block_hash_extra_keys(request, begin, end, 0)
            segments = keys_in_block(keys, begin, end)
            extra = (*(extra or ()), *segments) if segments else extra
            parent = hash_block_tokens(hash_function, parent, request.all_token_ids[begin:end], extra)
            found.append(parent)
        return found

    return hasher
