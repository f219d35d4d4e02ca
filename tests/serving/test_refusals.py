"""Every setup that cannot honour segments is named; against fakes of vLLM's config, so no vLLM is needed."""

from types import SimpleNamespace as Fake

import pytest

from segattn.serving.errors import ServingError
from segattn.serving.refusals import check_config, limits_of, problems_of

SERVABLE = {
    "parallel_config.pipeline_parallel_size": 1,
    "parallel_config.decode_context_parallel_size": 1,
    "parallel_config.prefill_context_parallel_size": 1,
    "parallel_config.use_ubatching": False,
    "scheduler_config.enable_chunked_prefill": True,
    "scheduler_config.max_num_batched_tokens": 2048,
    "scheduler_config.max_num_scheduled_tokens": None,
    "scheduler_config.max_num_seqs": 64,
    "scheduler_config.long_prefill_token_threshold": 0,
    "cache_config.kv_sharing_fast_prefill": False,
    "device_config.device_type": "cuda",
    "compilation_config.cudagraph_mode": None,
    "model_config.model": "runs/mine",
    "model_config.runner_type": "generate",
    "model_config.is_encoder_decoder": False,
    "model_config.is_multimodal_model": False,
    "model_config.use_mla": False,
    "model_config.is_hybrid": False,
    "model_config.is_attention_free": False,
    "model_config.enable_prompt_embeds": False,
    "model_config.hf_text_config": Fake(),
    "model_config.get_sliding_window": lambda: None,
    "speculative_config": None,
    "kv_transfer_config": None,
    "ec_transfer_config": None,
    "kv_events_config": None,
    "use_v2_model_runner": False,
}

FULL = Fake(mixed_mode=lambda: Fake(name="FULL"))
PIECEWISE = Fake(mixed_mode=lambda: Fake(name="PIECEWISE"))

REFUSED = [
    ("parallel_config.pipeline_parallel_size", 2, "--pipeline-parallel-size"),
    ("parallel_config.decode_context_parallel_size", 2, "--decode-context-parallel-size"),
    ("parallel_config.prefill_context_parallel_size", 2, "--prefill-context-parallel-size"),
    ("parallel_config.use_ubatching", True, "--enable-dbo"),
    ("scheduler_config.enable_chunked_prefill", False, "--no-enable-chunked-prefill"),
    ("scheduler_config.max_num_scheduled_tokens", 60, "no segment fits"),
    ("cache_config.kv_sharing_fast_prefill", True, "--kv-sharing-fast-prefill"),
    ("compilation_config.cudagraph_mode", FULL, "FULL_AND_PIECEWISE"),
    ("model_config.runner_type", "pooling", "embedding models"),
    ("model_config.is_encoder_decoder", True, "encoder-decoder"),
    ("model_config.is_multimodal_model", True, "multimodal"),
    ("model_config.use_mla", True, "MLA"),
    ("model_config.is_hybrid", True, "state-space"),
    ("model_config.is_attention_free", True, "state-space"),
    ("model_config.enable_prompt_embeds", True, "--enable-prompt-embeds"),
    ("model_config.get_sliding_window", lambda: 4096, "sliding windows"),
    ("model_config.hf_text_config", Fake(sliding_window=4096), "sliding windows"),
    ("model_config.hf_text_config", Fake(attention_chunk_size=8192), "chunked local attention"),
    ("model_config.hf_text_config", Fake(alibi=True), "ALiBi"),
    ("model_config.is_diffusion", True, "diffusion"),
    ("speculative_config", Fake(), "--speculative-config"),
    ("kv_transfer_config", Fake(), "--kv-transfer-config"),
    ("ec_transfer_config", Fake(), "--ec-transfer-config"),
    ("kv_events_config", Fake(enable_kv_cache_events=True), "--kv-events-config"),
    ("use_v2_model_runner", True, "VLLM_USE_V2_MODEL_RUNNER=0"),
]


def config(**changes):
    made = Fake()
    for path, value in {**SERVABLE, **changes}.items():
        *parents, name = path.split(".")
        place = made
        for parent in parents:
            if not hasattr(place, parent):
                setattr(place, parent, Fake())
            place = getattr(place, parent)
        setattr(place, name, value)
    return made


@pytest.mark.parametrize(("path", "value", "expected"), REFUSED, ids=[f"{path}-{e[:12]}" for path, _, e in REFUSED])
def test_each_is_refused_by_name(path, value, expected):
    problems = problems_of(config(**{path: value}))
    assert len(problems) == 1
    assert expected in problems[0]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kv_events_config", Fake(enable_kv_cache_events=False)),
        ("compilation_config.cudagraph_mode", PIECEWISE),
        ("model_config.hf_text_config", Fake(sliding_window=4096, use_sliding_window=False)),
        ("model_config.hf_text_config", Fake(sliding_window=None)),
        ("scheduler_config.long_prefill_token_threshold", 512),
    ],
)
def test_what_can_be_served_is(path, value):
    check_config(config())
    check_config(config(**{path: value}))


def test_a_full_graph_matters_on_gpus_only():
    check_config(config(**{"compilation_config.cudagraph_mode": FULL, "device_config.device_type": "cpu"}))


def test_all_reasons_are_told_at_once():
    with pytest.raises(ServingError, match=r"runs/mine.*\n- context[^\n]*\n- speculative"):
        check_config(config(**{"parallel_config.decode_context_parallel_size": 2, "speculative_config": Fake()}))


def test_the_smaller_budget_bounds_a_segment():
    assert limits_of(config()).longest_segment == 2048 - 63
    assert limits_of(config(**{"scheduler_config.max_num_scheduled_tokens": 100})).longest_segment == 37
    assert limits_of(config(**{"scheduler_config.long_prefill_token_threshold": 9})).longest_segment == 9
