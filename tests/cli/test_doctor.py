import json

import pytest
from typer.testing import CliRunner

from modeling.tiny import build
from pretrained.test_cache import make_entry
from segattn.cli import checks
from segattn.cli.main import app
from segattn.pretrained import SMOLLM2, cache


@pytest.fixture(autouse=True)
def quiet_surroundings(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def by_name():
    return {check.name: check for check in checks.run_checks(1.0)}


def doctor(*arguments):
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_a_usable_installation_without_the_model_says_how_to_bring_it():
    result = doctor()
    assert result.exit_code == 0, result.output
    assert "[ note ] model: HuggingFaceTB/SmolLM2-135M-Instruct: not there\n         -> segattn fetch" in result.stdout
    assert "switched off" in result.stdout
    assert result.stdout.endswith("Ready to use.\n")


def test_json_holds_the_environment_and_every_check():
    content = json.loads(doctor("--json").stdout)
    assert content["usable"] is True
    assert {"python", "torch", "threads", "memory", "device"} <= set(content["environment"])
    assert {"packages", "memory", "disk", "hub", "model"} <= {check["name"] for check in content["checks"]}
    assert all(set(check) == {"name", "state", "found", "mend"} for check in content["checks"])


def test_a_fetched_model_and_a_broken_one_are_told_apart():
    entry = make_entry(cache.entry_path(SMOLLM2))
    assert by_name()["model"].state == "ok"
    (entry / "config.json").unlink()
    assert by_name()["model"] == checks.Check(
        "model", "note", f"{SMOLLM2}: config.json is missing", mend="segattn fetch"
    )


@pytest.mark.parametrize(
    ("missing", "label", "state"),
    [("transformers", "packages for [hf]", "broken"), ("trl", "packages for [train]", "note")],
)
def test_a_missing_package_breaks_only_what_needs_it(monkeypatch, missing, label, state):
    installed = checks.installed_version
    monkeypatch.setattr(checks, "installed_version", lambda name: None if name == missing else installed(name))
    check = by_name()[label]
    extra = label.split("[")[1].rstrip("]")
    assert (check.state, check.found) == (state, f"{missing} is not installed")
    assert check.mend == f"pip install --upgrade 'segattn[{extra}]'"
    assert [name for name, other in by_name().items() if missing in other.found] == [label]
    assert doctor().exit_code == (1 if state == "broken" else 0)


@pytest.mark.parametrize(
    ("have", "old"), [("2.12.9", True), ("2.13", False), ("2.13.0+cpu", False), ("2.9", True), ("10.0", False)]
)
def test_versions_are_compared_as_numbers(monkeypatch, have, old):
    monkeypatch.setattr(checks, "requirements", lambda: {"": [("torch", "2.13.0")]})
    monkeypatch.setattr(checks, "installed_version", lambda name: have)
    check = by_name()["packages"]
    assert check.state == ("broken" if old else "ok")
    assert check.found == (f"torch {have} is older than 2.13.0" if old else f"torch {have}")


def test_little_memory_and_disk_are_noted(monkeypatch):
    monkeypatch.setattr(checks, "memory", lambda: (2**30, 2**29))
    monkeypatch.setattr(checks, "free_disk", lambda folder: 10**6)
    found = by_name()
    assert found["memory"].state == found["disk"].state == "note"
    assert "SEGATTN_CACHE" in found["disk"].mend


def test_memory_that_the_system_does_not_tell_is_no_complaint(monkeypatch):
    monkeypatch.setattr(checks, "memory", lambda: (0, 0))
    assert by_name()["memory"].state == "ok"


def test_fetch_prints_the_folder_of_a_model_that_is_there():
    entry = make_entry(cache.entry_path(SMOLLM2))
    result = CliRunner().invoke(app, ["fetch"])
    assert (result.exit_code, result.stdout) == (0, f"{entry}\n")
    content = json.loads(CliRunner().invoke(app, ["fetch", "--json"]).stdout)
    assert (content["path"], content["source"]) == (str(entry), "hub")


def test_fetch_of_an_unreachable_model_is_a_message():
    result = CliRunner().invoke(app, ["fetch", "me/tiny"])
    assert result.exit_code == 2
    assert "cannot fetch me/tiny" in result.stderr


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model with windows of 4 tokens, on disk."""
    path = tmp_path_factory.mktemp("model")
    build("gemma3").save_pretrained(path)
    return str(path)


def test_a_model_is_probed_past_its_window(saved):
    result = doctor(saved)
    assert result.exit_code == 0, result.output
    assert "Gemma3ForCausalLM under sdpa, 64 tokens" in result.stdout
    assert "layers: 3 follow segments" in result.stdout
    assert "verdict: exact\n" in result.stdout
    found = json.loads(doctor(saved, "--json", "--length", "20", "--attn_implementation", "eager").stdout)
    assert (found["status"], found["length"], found["implementation"]) == ("exact", 20, "eager")
    assert [layer[:2] for layer in found["layers"]] == [[f"model.layers.{number}", "segments"] for number in range(3)]


def test_a_model_that_drops_segments_is_refused_with_the_layer(saved, monkeypatch):
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def flash(module, query, key, value, attention_mask, **kwargs):
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", flash)
    result = doctor(saved)
    assert result.exit_code == 1
    assert "model.layers.0: the segment mask did not arrive: the layer runs causally" in result.stdout
    assert "verdict: refused" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere/at-all"], "cannot be loaded"), (["MODEL", "--length", "3"], "--length is 3; expected 10 to 128")],
)
def test_what_cannot_be_probed_is_an_error(saved, arguments, message):
    result = doctor(*(saved if word == "MODEL" else word for word in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
