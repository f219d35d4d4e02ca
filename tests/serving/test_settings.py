import json
from types import SimpleNamespace as Fake

import pytest

from segattn import Segmenter, SegmentError
from segattn.serving.errors import ServingError
from segattn.serving.limits import StepLimits
from segattn.serving.requests import RequestChecker
from segattn.serving.settings import KEY, ServingSettings, entry_of
from serving.tiny_served import Chats


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_tokenizer(Chats().tokenizer)


def test_settings_pass_through_vllms_config_as_json(segmenter):
    prefix = segmenter.with_policy("prefix")
    settings = ServingSettings(segmenter, StepLimits(64, 4, 32), False, {"a": prefix, "b": None}, {"a": "runs/a"})
    written = json.loads(json.dumps(settings.to_dict()))
    read = ServingSettings.from_config(Fake(additional_config={KEY: written}))
    ids, spans = Chats(1).prompt([("system", [1, 2]), ("user", [3, 4, 5])])
    assert read.base.spans(ids) == spans
    assert read.adapters["a"].spans(ids) == [(0, spans[1][1])]
    assert read.adapters["b"] is None
    assert read.folders == {"a": "runs/a"}
    assert read.limits == StepLimits(64, 4, 32)
    assert not read.per_request


@pytest.mark.parametrize("additional", [{}, {KEY: {"base": "runs/mine"}}, object()])
def test_without_resolved_settings_the_engine_does_not_start(additional):
    with pytest.raises(ServingError, match="platform plugin"):
        ServingSettings.from_config(Fake(additional_config=additional))


def test_an_entry_must_be_an_object():
    with pytest.raises(SegmentError, match="expected an object"):
        entry_of(Fake(additional_config={KEY: "runs/mine"}))


def request(ids, extra_args=None, adapter=None, **fields):
    lora = None if adapter is None else Fake(lora_name=adapter, lora_path="nowhere")
    made = {"prompt_embeds": None, "mm_features": None, "resumable": False, "lora_request": lora}
    return Fake(**{"prompt_token_ids": ids, "sampling_params": Fake(extra_args=extra_args), **made, **fields})


@pytest.fixture
def checker(segmenter):
    return RequestChecker(ServingSettings(None, StepLimits(20, 4), adapters={"a": segmenter}))


def test_a_request_is_given_the_spans_of_its_adapter(checker):
    ids, spans = Chats().prompt([("user", [1, 2])])
    long, _ = Chats().prompt([("user", [1] * 20)])
    flat = [bound for span in spans for bound in span]
    for made, expected in [
        (request(ids, adapter="a"), flat),
        (request(ids, {KEY: "segments"}, adapter="a"), flat),
        (request(ids), []),  # the base model, also where its adapter could not take the prompt
        (request(long), []),
        (request(long, {KEY: "causal"}, adapter="a"), []),
        (request(ids, {KEY: [1, 3], "other": 1}, adapter="a"), [1, 3]),
    ]:
        own = made.sampling_params.extra_args
        before = None if own is None else dict(own)
        checker.settle(made)
        assert made.sampling_params.extra_args[KEY] == expected
        assert own is None or own == before  # what the caller gave is not written to


def test_requests_that_cannot_be_served_are_told_why(checker):
    short, _ = Chats().prompt([("user", [1, 2])])
    long, _ = Chats().prompt([("user", [1] * 20)])
    for made, expected in [
        (request(long, adapter="a"), "--max-num-batched-tokens"),
        (request(short, {KEY: [0, 99]}), "row of"),
        (request(short, {KEY: "segments"}), "not tuned with segments"),
        (request(None), "more than text"),
        (request(short, prompt_embeds=object()), "more than text"),
        (request(short, mm_features=[object()]), "more than text"),
        (request(short, resumable=True), "sent whole"),
        (request(short, sampling_params=None), "pooling"),
    ]:
        with pytest.raises(SegmentError, match=expected):
            checker.settle(made)
