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
    settings = ServingSettings(segmenter, StepLimits(64, 4, 32), False, {"a": prefix, "b": None})
    written = json.loads(json.dumps(settings.to_dict()))
    read = ServingSettings.from_config(Fake(additional_config={KEY: written}))
    ids, spans = Chats(1).prompt([("system", [1, 2]), ("user", [3, 4, 5])])
    assert read.segmenter_of(None).spans(ids) == spans
    assert read.segmenter_of(Fake(lora_name="a")).spans(ids) == [(0, spans[1][1])]
    assert read.segmenter_of(Fake(lora_name="b")) is None
    assert read.segmenter_of(Fake(lora_name="unknown")).spans(ids) == spans
    assert read.limits == StepLimits(64, 4, 32)
    assert not read.per_request


@pytest.mark.parametrize("additional", [{}, {KEY: {"base": "runs/mine"}}, object()])
def test_without_resolved_settings_the_engine_does_not_start(additional):
    with pytest.raises(ServingError, match="platform plugin"):
        ServingSettings.from_config(Fake(additional_config=additional))


def test_an_entry_must_be_an_object():
    with pytest.raises(SegmentError, match="expected an object"):
        entry_of(Fake(additional_config={KEY: "runs/mine"}))


class Sampling:
    temperature = 0.0

    def __init__(self, extra_args=None):
        self.extra_args = extra_args


def test_requests_that_cannot_be_served_are_told_why(segmenter):
    checker = RequestChecker(ServingSettings(None, StepLimits(20, 4), adapters={"a": segmenter}))
    short, _ = Chats().prompt([("user", [1, 2])])
    long, _ = Chats().prompt([("user", [1] * 20)])
    checker.check({"type": "token", "prompt_token_ids": short}, Sampling())
    checker.check({"type": "token", "prompt_token_ids": long}, Sampling({KEY: "causal"}))
    checker.check({"type": "token", "prompt_token_ids": short}, Sampling({KEY: "segments"}))
    for engine_input, params, expected in [
        ({"type": "token", "prompt_token_ids": long}, Sampling(), "--max-num-batched-tokens"),
        ({"type": "token", "prompt_token_ids": short}, Sampling({KEY: [0, 99]}), "row of"),
        ({"type": "embeds"}, Sampling(), "'embeds'"),
        ({"type": "multimodal", "prompt_token_ids": short}, Sampling(), "'multimodal'"),
        ({"type": "token", "prompt_token_ids": short}, Fake(), "pooling"),
    ]:
        with pytest.raises(SegmentError, match=expected):
            checker.check(engine_input, params)
