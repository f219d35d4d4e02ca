import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from segattn.pretrained import FetchError, cache


def make_entry(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}, folder / "model.safetensors")
    cache.write_provenance(folder, {"model": "me/tiny", "source": "hub"})
    return folder


@pytest.fixture
def entry(tmp_path):
    return make_entry(tmp_path / "entry")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SEGATTN_CACHE": "{home}/own", "XDG_CACHE_HOME": "{home}/xdg"}, "own"),
        ({"XDG_CACHE_HOME": "{home}/xdg"}, "xdg/segattn"),
        ({"XDG_CACHE_HOME": "relative"}, ".cache/segattn"),
        ({"SEGATTN_CACHE": "", "XDG_CACHE_HOME": ""}, ".cache/segattn"),
        ({"SEGATTN_CACHE": "~/tilde"}, "tilde"),
    ],
)
def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path, variables, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SEGATTN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(home=tmp_path))
    assert cache.cache_folder() == tmp_path / expected


def test_a_whole_entry_has_no_problem_and_says_where_it_came_from(entry):
    assert cache.entry_problem(entry) is None
    recorded = cache.provenance(entry)
    assert recorded["model"] == "me/tiny"
    assert set(recorded["files"]) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", cache.PROVENANCE_FILE])
def test_a_missing_file_is_a_problem(entry, name):
    (entry / name).unlink()
    assert name in cache.entry_problem(entry)


@given(name=st.sampled_from(["config.json", "model.safetensors"]), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_file_cut_anywhere_or_grown_is_a_problem(tmp_path_factory, name, data):
    entry = make_entry(tmp_path_factory.mktemp("cut") / "entry")
    content = (entry / name).read_bytes()
    cut = data.draw(st.integers(0, len(content) - 1) | st.just(None))
    (entry / name).write_bytes(content + b"x" if cut is None else content[:cut])
    assert cache.entry_problem(entry) is not None


def test_a_changed_small_file_is_a_problem_though_its_size_is_right(entry):
    text = (entry / "config.json").read_text()
    (entry / "config.json").write_text(text.replace("llama", "gemma"))
    assert cache.entry_problem(entry) == "config.json has changed since it was fetched"


@pytest.mark.parametrize(
    "header", [b"\xff" * 8, b"\0" * 8, b"\x05" + b"\0" * 7 + b"[1,2]", b"\x02" + b"\0" * 7 + b"{}"]
)
def test_large_weights_are_judged_by_their_header(entry, monkeypatch, header):
    monkeypatch.setattr(cache, "_HASHED_UP_TO", 100)
    path = entry / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(header + content[len(header) :])
    assert path.stat().st_size == len(content)
    assert "model.safetensors" in cache.entry_problem(entry)


def test_large_weights_are_not_hashed(entry, monkeypatch):
    monkeypatch.setattr(cache, "_HASHED_UP_TO", 100)
    hashed = []
    monkeypatch.setattr(cache, "sha256", lambda path: hashed.append(path.name) or recorded[path.name]["sha256"])
    recorded = cache.provenance(entry)["files"]
    assert cache.entry_problem(entry) is None
    assert hashed == ["config.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}', '{"format": 1}', '{"format": 1, "files": {"a": {}}}'])
def test_an_unreadable_provenance_is_a_problem(entry, text):
    (entry / cache.PROVENANCE_FILE).write_text(text)
    assert cache.PROVENANCE_FILE in cache.entry_problem(entry)


def test_a_provenance_without_weights_is_a_problem(entry):
    content = cache.provenance(entry)
    del content["files"]["model.safetensors"]
    (entry / cache.PROVENANCE_FILE).write_text(json.dumps(content))
    assert "no safetensors weights" in cache.entry_problem(entry)


def test_installing_replaces_a_broken_entry_and_leaves_nothing_else(entry, tmp_path):
    target = tmp_path / "models" / "tiny"
    make_entry(target)
    (target / "config.json").unlink()
    cache.install(entry, target)
    assert cache.entry_problem(target) is None
    assert [path.name for path in target.parent.iterdir()] == ["tiny"]
    assert not entry.exists()


def test_a_broken_folder_is_not_installed(entry, tmp_path):
    (entry / "config.json").unlink()
    with pytest.raises(FetchError, match=r"config\.json is missing"):
        cache.install(entry, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_too_small_a_disk_is_refused_before_anything_is_brought(tmp_path):
    with pytest.raises(FetchError, match="SEGATTN_CACHE"):
        cache.require_space(tmp_path, 10**18)
    cache.require_space(tmp_path, 1)
