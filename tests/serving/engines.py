"""Engines of vLLM in this process, one at a time, and what they answer."""

import gc
import os
from contextlib import contextmanager

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

BLOCK = 32  # the smallest that vLLM's CPU kernels take
SMALL = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "block_size": BLOCK,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 256,
    "kv_cache_memory_bytes": 1 << 26,
    "seed": 0,
}


@contextmanager
def engine(checkpoint, **options):
    """An `LLM` with segments, freed at the end."""
    import segattn.serving

    llm = segattn.serving.llm(str(checkpoint), **{**SMALL, **options})
    try:
        yield llm
    finally:
        close(llm)
        del llm
        gc.collect()


def close(llm):
    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()


def scheduler_of(llm):
    return llm.llm_engine.engine_core.engine_core.scheduler


def free_blocks(llm):
    return scheduler_of(llm).kv_cache_manager.block_pool.get_num_free_blocks()


def parameters(count=8, override=None, **options):
    from vllm import SamplingParams

    extra = None if override is None else {"segment_attention": override}
    return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, extra_args=extra, **options)


def answers(llm, requests, **options):
    """Token ids per request, and how many tokens of each prompt came from the cache.

    requests: (prompt ids, override or None).
    """
    outputs = llm.generate(
        [{"prompt_token_ids": list(ids)} for ids, _ in requests],
        [parameters(override=override, **options) for _, override in requests],
        use_tqdm=False,
    )
    return [list(o.outputs[0].token_ids) for o in outputs], [o.num_cached_tokens for o in outputs]
