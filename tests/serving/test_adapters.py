"""What segments an adapter's requests, read from folders; no vLLM is needed."""

import json
from types import SimpleNamespace as Fake

import pytest

from segattn import SegmentAttentionError, Segmenter
from segattn.serving.adapters import Adapters
from segattn.serving.limits import StepLimits
from segattn.serving.settings import ServingSettings
from serving.tiny_served import Chats

IDS, SPANS = Chats(1).prompt([("system", [1, 2]), ("user", [3, 4, 5])])


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_tokenizer(Chats().tokenizer)


@pytest.fixture
def folder(tmp_path, segmenter):
    """Makes a folder that looks like an adapter."""

    def make(name, entry="own"):
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        (path / "adapter_config.json").write_text("{}")
        if entry is not None:
            content = {"format": 1, "segmenter": segmenter.to_dict()} if entry == "own" else entry
            (path / "segment_attention.json").write_text(json.dumps(content))
        return str(path)

    return make


def settings(base=None, adapters=None, folders=None):
    return ServingSettings(base, StepLimits(64, 4), True, adapters or {}, folders or {})


def spans(adapters, name, path):
    return list(adapters.spans(IDS, None, Fake(lora_name=name, lora_path=path)))


def test_an_adapter_that_the_settings_do_not_name_is_read_by_its_own_folder(folder, segmenter):
    for base in (None, segmenter):
        adapters = Adapters(settings(base))
        assert list(adapters.spans(IDS, None, None)) == ([] if base is None else SPANS)
        assert spans(adapters, "tuned", folder("tuned")) == SPANS
        assert spans(adapters, "causal", folder("causal", None)) == []


def test_a_word_of_the_settings_holds_for_a_name_and_a_folder_only_for_that_folder(folder, segmenter):
    prefix = segmenter.with_policy("prefix")
    mine, causal = folder("mine"), folder("causal", None)
    whole = folder("whole", {"format": 1, "segmenter": prefix.to_dict()})
    adapters = Adapters(settings(None, {"off": None, "on": segmenter, "mine": segmenter}, {"mine": mine}))
    assert spans(adapters, "off", mine) == []
    assert spans(adapters, "on", causal) == SPANS
    assert spans(adapters, "mine", mine) == SPANS
    # Loaded later, in its place:
    assert spans(adapters, "mine", whole) == [(0, SPANS[-1][1])]
    with pytest.raises(SegmentAttentionError, match="under another name"):
        spans(adapters, "mine", causal)


def test_a_folder_is_read_again_when_its_file_changes(folder, segmenter):
    adapters, path = Adapters(settings()), folder("mine")
    assert spans(adapters, "mine", path) == SPANS
    folder("mine", {"format": 1, "segmenter": segmenter.with_policy("prefix").to_dict()})
    assert spans(adapters, "mine", path) == [(0, SPANS[-1][1])]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"format": 99}, "cannot read"),
        ([], "cannot read"),
        ({"format": 1, "segmenter": None}, "no segmenter"),
        ({"format": 2, "segmenter": None, "layers": [0]}, "layers"),
    ],
)
def test_what_cannot_be_read_is_not_taken_for_causal(folder, entry, expected):
    adapters, path = Adapters(settings()), folder("bad", entry)
    for _ in range(2):
        with pytest.raises(SegmentAttentionError, match=expected):
            spans(adapters, "bad", path)


def test_a_folder_that_is_not_there_is_not_taken_for_causal(tmp_path):
    with pytest.raises(SegmentAttentionError, match=r"holds no adapter_config\.json"):
        spans(Adapters(settings()), "gone", str(tmp_path / "gone"))


def test_a_request_that_gives_its_spans_needs_no_folder(tmp_path):
    request = Fake(lora_name="gone", lora_path=str(tmp_path / "gone"))
    assert Adapters(settings()).spans(IDS, {"segment_attention": [0, 4]}, request) == ((0, 4),)
