"""The entry points: they cost nothing and break nothing where nobody asks for segments."""

import subprocess
import sys
from importlib import metadata

import pytest

from segattn.serving import plugin
from segattn.serving.errors import ServingError

OURS = "segattn.serving.platform.SegmentPlatform"


@pytest.fixture
def points(monkeypatch):
    """Sets which platform plugins are installed."""

    def install(*values):
        group = [metadata.EntryPoint(f"p{i}", value, "vllm.platform_plugins") for i, value in enumerate(values)]
        monkeypatch.setattr(plugin.metadata, "entry_points", lambda group=group, **_: group)
        monkeypatch.setattr(plugin.metadata, "entry_points", lambda **_: group)

    install("segattn.serving.plugin:platform")
    monkeypatch.delenv("SEGATTN_VLLM", raising=False)
    return install


def test_alone_ours_is_offered(points):
    assert plugin.platform() == OURS


def test_beside_another_platform_ours_stays_out_unless_asked_for(points, monkeypatch):
    points("segattn.serving.plugin:platform", "vllm_ascend:register")
    assert plugin.platform() is None
    monkeypatch.setenv("SEGATTN_VLLM", "1")
    assert plugin.platform() == OURS


def test_zero_switches_it_off_and_other_values_are_refused(points, monkeypatch):
    monkeypatch.setenv("SEGATTN_VLLM", "0")
    assert plugin.platform() is None
    monkeypatch.setenv("SEGATTN_VLLM", "yes")
    with pytest.raises(ServingError, match="'yes'"):
        plugin.platform()


def test_another_platform_in_place_is_refused_only_where_segments_are_required(points, monkeypatch):
    monkeypatch.setattr(plugin, "is_active", lambda: False)
    plugin.check_active()
    monkeypatch.setenv("SEGATTN_VLLM", "1")
    with pytest.raises(ServingError, match="VLLM_TARGET_DEVICE"):
        plugin.check_active()
    monkeypatch.setattr(plugin, "is_active", lambda: True)
    plugin.check_active()


@pytest.mark.parametrize(
    ("variables", "named"),
    [({"VLLM_TARGET_DEVICE": "cpu"}, "VLLM_TARGET_DEVICE"), ({"VLLM_PLUGINS": "other,more"}, "VLLM_PLUGINS")],
)
def test_variables_that_pass_over_plugins_are_named(variables, named):
    with pytest.raises(ServingError, match=named):
        plugin.check_environment(variables)
    plugin.check_environment({"VLLM_PLUGINS": "other,segattn", "VLLM_TARGET_DEVICE": "cuda"})
    plugin.check_environment({})


def test_loading_the_entry_points_imports_nothing_heavy():
    code = "import sys, segattn.serving.plugin as p; p.platform(); print(*sorted(m.split('.')[0] for m in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "segattn" in loaded
    assert not {"torch", "transformers", "vllm", "peft", "typer"} & set(loaded)
