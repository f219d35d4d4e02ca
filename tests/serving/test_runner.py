"""What a step's builder is given, against a fake of vLLM's runner: no vLLM is needed."""

from types import SimpleNamespace

import pytest

from segattn.serving.errors import CutSegmentError, ServingError
from segattn.serving.limits import StepLimits
from segattn.serving.runner import SegmentRunner
from segattn.serving.settings import KEY, ServingSettings
from serving.fake_metadata import metadata_of, seen
from serving.layouts import visible


class Builder:
    """As vLLM's: its `build` gets what the runner put into the common metadata."""

    supports_update_block_table = True

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        assert fast_build
        return common_attn_metadata


class StockRunner:
    """As much of vLLM's runner as is overridden."""

    def __init__(self, vllm_config):
        self.vllm_config = vllm_config
        self.attn_groups = []

    def initialize_metadata_builders(self, kv_cache_config, kernel_block_sizes):
        backend = SimpleNamespace(get_name=lambda: kv_cache_config)
        self.attn_groups = [[SimpleNamespace(backend=backend, layer_names=["0"], metadata_builders=[Builder()])]]

    def _build_attention_metadata(self, num_reqs, num_reqs_padded=None, num_scheduled_tokens=None):
        names = self.input_batch.req_ids[:num_reqs]
        tokens = [(num_scheduled_tokens or dict.fromkeys(names, 1))[name] for name in names]
        computed = self.input_batch.num_computed_tokens_cpu
        step = metadata_of(list(zip(computed, tokens, strict=True)), num_reqs_padded or 0)
        return self.attn_groups[0][0].metadata_builders[0].build(0, step, fast_build=True)


class Runner(SegmentRunner, StockRunner):
    pass


def runner(requests, per_request=True, backend="TRITON_ATTN"):
    """requests: name -> (prompt length, spans as an override, tokens that are computed already)."""
    settings = ServingSettings(None, StepLimits(64, 4), per_request)
    made = Runner(SimpleNamespace(additional_config={KEY: settings.to_dict()}))
    made.initialize_metadata_builders(backend, [16])
    made.requests = {
        name: SimpleNamespace(
            prompt_token_ids=[0] * length,
            sampling_params=SimpleNamespace(extra_args={"segment_attention": spans}),
            lora_request=None,
        )
        for name, (length, spans, _) in requests.items()
    }
    computed = [computed for _, _, computed in requests.values()]
    made.input_batch = SimpleNamespace(req_ids=list(requests), num_computed_tokens_cpu=computed)
    return made


REQUESTS = {"a": (20, [0, 12, 12, 18], 0), "b": (9, [], 4), "c": (6, [0, 6], 8), "d": (16, [4, 16], 10)}
SCHEDULED = {"a": 20, "b": 5, "c": 1, "d": 6}


def test_each_token_sees_what_the_rule_says_and_padding_nothing():
    made = runner(REQUESTS)
    step = made._build_attention_metadata(num_reqs=4, num_reqs_padded=6, num_scheduled_tokens=SCHEDULED)
    assert step.causal.tolist() == [0, 0, 1, 1, 1, 0, 1, 1]
    expected = []
    for index, (name, (length, spans, computed)) in enumerate(REQUESTS.items()):
        pairs = tuple(zip(spans[::2], spans[1::2], strict=True))
        end = computed + SCHEDULED[name]
        expected += [(index, visible(pairs, at, max(length, end))) for at in range(computed, end)]
    assert seen(step) == expected


def test_a_step_without_segments_is_left_to_vllm():
    made = runner({"a": (20, [0, 12], 12), "b": (9, [], 4)})
    step = made._build_attention_metadata(num_reqs=2, num_scheduled_tokens={"a": 1, "b": 5})
    assert step.causal is True
    assert step.num_reqs == 2
    assert made._build_attention_metadata(num_reqs=2).causal is True  # vLLM's dummy runs


def test_rows_do_not_outlive_their_step():
    made = runner(REQUESTS)
    made._build_attention_metadata(num_reqs=4, num_scheduled_tokens=SCHEDULED)
    assert made._build_attention_metadata(num_reqs=4).causal is True


def test_a_cut_segment_raises():
    made = runner({"a": (20, [0, 12], 0)})
    with pytest.raises(CutSegmentError, match="0 to 11"):
        made._build_attention_metadata(num_reqs=1, num_scheduled_tokens={"a": 11})
    assert made._build_attention_metadata(num_reqs=1).causal is True


def test_metadata_is_always_built_anew():
    """vLLM would put a block table with a row for each request into metadata that was built of rows."""
    made = runner(REQUESTS)
    assert not made.attn_groups[0][0].metadata_builders[0].supports_update_block_table


def test_one_flag_for_a_step_of_one_kind():
    made = runner({"a": (20, [0, 12], 0), "c": (6, [0, 6], 8)}, per_request=False, backend="FLASH_ATTN")
    step = made._build_attention_metadata(num_reqs=2, num_scheduled_tokens={"a": 12, "c": 1})
    assert step.causal is False
    assert step.num_reqs == 2
    mixed = runner(REQUESTS, per_request=False)
    with pytest.raises(CutSegmentError, match="of one kind"):
        mixed._build_attention_metadata(num_reqs=4, num_scheduled_tokens=SCHEDULED)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ServingError, match="MLA"):
        runner(REQUESTS, backend="FLASHMLA")


def test_a_config_without_settings_is_refused():
    with pytest.raises(ServingError, match="platform plugin"):
        Runner(SimpleNamespace(additional_config={}))
