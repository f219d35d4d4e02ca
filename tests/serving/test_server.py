"""The command that `segattn serve` becomes; nothing is started."""

import json
import sys

import pytest

from segattn import SegmentAttentionError, Segmenter
from segattn.serving.checkpoint import target_of
from segattn.serving.offline import engine_arguments
from segattn.serving.server import server_command
from serving.tiny_served import Chats


@pytest.fixture(scope="module")
def entry():
    return {"format": 1, "segmenter": Segmenter.from_tokenizer(Chats().tokenizer).to_dict()}


@pytest.fixture
def folder(tmp_path, entry):
    """Makes a folder that looks like a checkpoint."""

    def make(name, *, tuned=True, base=None, config=None, entry=entry):
        path = tmp_path / name
        path.mkdir()
        if base is None:
            (path / "config.json").write_text(json.dumps({"segment_attention": entry} if tuned else {}))
        else:
            adapter = {"peft_type": "LORA", "r": 12, "base_model_name_or_path": str(base), **(config or {})}
            (path / "adapter_config.json").write_text(json.dumps(adapter))
            if tuned:
                (path / "segment_attention.json").write_text(json.dumps(entry))
        return str(path)

    return make


def parsed(command):
    """Flags and their values."""
    assert command[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    flags, name = {}, None
    for word in command[3:]:
        if word.startswith("--"):
            name = word
            assert name not in flags, "a flag stands twice"
            flags[name] = []
        else:
            flags[name].append(word)
    return flags


def segments_of(command):
    return json.loads(parsed(command)["--additional-config"][0])["segment_attention"]


def test_a_model(folder):
    model = folder("model")
    command = server_command(model, ["--port", "8001", "--enforce-eager"])
    assert parsed(command)["--model"] == [model]
    assert parsed(command)["--port"] == ["8001"]
    assert segments_of(command) == {"base": model, "adapters": {}}


def test_an_adapter_is_loaded_by_vllm_over_its_base(folder):
    base = folder("base", tuned=False)
    adapter = folder("mine", base=base, config={"rank_pattern": {"q_proj": 20}})
    command = server_command(adapter, [])
    flags = parsed(command)
    assert flags["--model"] == [base]
    assert flags["--lora-modules"] == [f"mine={adapter}"]
    assert flags["--enable-lora"] == []
    assert flags["--max-lora-rank"] == ["32"]
    assert segments_of(command) == {"base": None, "adapters": {"mine": adapter}}


def test_what_the_user_gives_is_kept_and_merged(folder):
    base = folder("base")
    mine, other = folder("mine", base=base), folder("other", base=base, tuned=False)
    flags = ["--lora-modules", f"other={other}", "--max-lora-rank=64", "--enable-lora"]
    flags += ["--additional-config", json.dumps({"x": 1, "segment_attention": {"per_request": False}})]
    command = server_command(mine, flags)
    assert parsed(command)["--lora-modules"] == [f"mine={mine}", f"other={other}"]
    assert "--max-lora-rank" not in parsed(command)
    assert json.loads(parsed(command)["--additional-config"][0])["x"] == 1
    # The other one records nothing, which is what each process reads of it.
    assert segments_of(command) == {"base": base, "adapters": {"mine": mine}, "per_request": False}


def test_a_json_module_is_read_too(folder):
    base = folder("base", tuned=False)
    mine = folder("mine", base=base)
    command = server_command(base, ["--lora-modules", json.dumps({"name": "m", "path": mine})])
    assert segments_of(command) == {"base": None, "adapters": {"m": mine}}


def test_a_checkpoint_without_segmentation_is_refused_or_served_causally(folder):
    model = folder("model", tuned=False)
    with pytest.raises(SegmentAttentionError, match="--attention causal"):
        server_command(model, [])
    assert "--additional-config" not in parsed(server_command(model, [], "causal"))
    with pytest.raises(SegmentAttentionError, match="badly wrong causally"):
        server_command(folder("tuned"), [], "causal")
    with pytest.raises(SegmentAttentionError, match="badly wrong causally"):
        server_command(folder("mine", base=model), [], "causal")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model", "x"], "--model"),
        (["--additional-config", "{"], "JSON object"),
        (["--additional-config"], "JSON object"),
        (["--additional_config=[]"], "JSON object"),
        (["--lora-modules", "mine"], "NAME=PATH"),
    ],
)
def test_malformed_flags(folder, flags, expected):
    with pytest.raises(SegmentAttentionError, match=expected):
        server_command(folder("model"), flags)


@pytest.mark.parametrize("config", [{"peft_type": "LOHA"}, {"base_model_name_or_path": None}])
def test_adapters_that_vllm_cannot_load_are_refused(folder, config):
    with pytest.raises(SegmentAttentionError, match="merge_and_unload"):
        target_of(folder("mine", base="x", config=config))


def test_segmentations_that_a_server_cannot_follow_are_refused(folder, entry):
    with pytest.raises(SegmentAttentionError, match=r"layers \[0, 1\]"):
        server_command(folder("layers", entry={**entry, "format": 2, "layers": [0, 1]}), [])
    with pytest.raises(SegmentAttentionError, match="no segmenter"):
        server_command(folder("given", entry={"format": 1, "segmenter": None}), [])


def test_arguments_of_the_offline_engine(folder):
    base = folder("base", tuned=False)
    adapter = folder("mine", base=base)
    made = engine_arguments(target_of(adapter), {"dtype": "float32", "max_lora_rank": 64})
    expected = {"model": base, "dtype": "float32", "enable_lora": True, "max_lora_rank": 64}
    assert {name: made[name] for name in expected} == expected
    assert made["additional_config"] == {"segment_attention": {"base": None, "adapters": {"mine": adapter}}}
    with pytest.raises(SegmentAttentionError, match="tuned causally"):
        engine_arguments(target_of(folder("plain", base=base, tuned=False)), {})
