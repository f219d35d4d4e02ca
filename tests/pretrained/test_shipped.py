"""The adapter that comes with the package."""

import json

import pytest
import torch
from safetensors.torch import load_file

import segattn
from segattn.pretrained import FetchError, fetching, resolve_model, shipped


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose adapter is three small files, a cache, and a base model."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "base_model_name_or_path": "elsewhere"}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "segment_attention.json").write_text("{}")
    monkeypatch.setattr(shipped, "_FOLDER", folder)
    monkeypatch.setenv("SEGATTN_CACHE", str(tmp_path / "cache"))
    return folder


def test_it_names_the_base_of_this_machine(package, tmp_path):
    adapter = shipped.shipped_adapter(tmp_path / "base")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config == {"r": 2, "base_model_name_or_path": str(tmp_path / "base")}
    assert (adapter / "adapter_model.safetensors").read_bytes() == b"weights"
    assert json.loads((package / "adapter_config.json").read_text())["base_model_name_or_path"] == "elsewhere"


def test_it_is_written_once_and_again_when_it_is_damaged(package, tmp_path):
    adapter = shipped.shipped_adapter(tmp_path / "base")
    written = (adapter / "adapter_model.safetensors").stat().st_mtime_ns
    assert shipped.shipped_adapter(tmp_path / "base") == adapter
    assert (adapter / "adapter_model.safetensors").stat().st_mtime_ns == written
    (adapter / "adapter_model.safetensors").write_bytes(b"weig")
    assert shipped.shipped_adapter(tmp_path / "base") == adapter
    assert (adapter / "adapter_model.safetensors").read_bytes() == b"weights"
    assert [entry.name for entry in adapter.parent.iterdir()] == [adapter.name]


def test_another_base_or_version_is_another_folder(package, tmp_path):
    first = shipped.shipped_adapter(tmp_path / "base")
    assert shipped.shipped_adapter(tmp_path / "other") != first
    (package / "adapter_model.safetensors").write_bytes(b"better weights")
    assert shipped.shipped_adapter(tmp_path / "base") != first


def test_a_package_without_it_says_what_to_do(package, tmp_path):
    (package / "adapter_model.safetensors").unlink()
    with pytest.raises(FetchError, match="segattn adapt"):
        shipped.shipped_adapter(tmp_path / "base")


def test_its_name_on_the_command_line(package, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "fetch", lambda model: tmp_path / "base")
    assert resolve_model("smollm2-segments") == str(shipped.shipped_adapter(tmp_path / "base"))


def test_what_is_shipped_is_small_and_records_its_segmentation():
    weights = shipped._FOLDER / "adapter_model.safetensors"
    assert weights.stat().st_size < 4 * 2**20
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.bfloat16}
    entry = json.loads((shipped._FOLDER / "segment_attention.json").read_text())
    assert entry["segmenter"]["policy"] == "turns"
    config = json.loads((shipped._FOLDER / "adapter_config.json").read_text())
    assert "/" not in config["base_model_name_or_path"].removeprefix("HuggingFaceTB/")


@pytest.mark.slow
def test_it_answers_with_segments():
    model, tokenizer = segattn.from_pretrained(resolve_model("smollm2-segments"), dtype=torch.float32)
    segmenter = segattn.modeling.segmenter_of(model)
    batch = segmenter.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )
    assert (batch["segment_ids"] >= 0).any()
    answer = model.generate(**batch, max_new_tokens=12, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
