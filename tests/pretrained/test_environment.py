import json
import platform
import re

import pytest
import torch

from segattn.pretrained import environment as facts


def test_the_environment_is_text_that_json_takes():
    found = facts.environment()
    assert json.loads(json.dumps(found)) == found
    assert all(isinstance(value, str) and value for value in found.values())
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["threads"] == str(torch.get_num_threads())
    assert re.fullmatch(r"[\d.]+ GiB, [\d.]+ GiB free", found["memory"])


def test_a_missing_package_is_named_as_such(monkeypatch):
    monkeypatch.setattr(facts, "_REPORTED", ("segattn", "no-such-distribution"))
    assert facts.environment()["no-such-distribution"] == "not installed"


def test_declared_requirements_are_read_per_extra(monkeypatch):
    lines = [
        "torch>=2.13",
        "trl>=1.16; extra == 'train'",
        'jinja2>=3.1 ; extra == "hf"',
        "segattn[hf]; extra == 'train'",
        "rich; extra == 'cli'",
    ]
    monkeypatch.setattr(facts, "requires", lambda name: lines)
    assert facts.requirements() == {
        "": [("torch", "2.13")],
        "train": [("trl", "1.16")],
        "hf": [("jinja2", "3.1")],
        "cli": [("rich", "0")],
    }


def test_this_package_declares_torch_and_its_extras():
    declared = facts.requirements()
    assert [name for name, _ in declared[""]] == ["torch"]
    assert {"trl", "peft"} <= {name for name, _ in declared["train"]}


def test_memory_is_plausible():
    total, free = facts.memory()
    assert 0 < free <= total < 2**50


def test_memory_of_a_system_that_does_not_tell(monkeypatch):
    monkeypatch.setattr(facts.os, "sysconf", lambda name: (_ for _ in ()).throw(ValueError(name)))
    assert facts.memory() == (0, 0)


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    assert facts.free_disk(tmp_path / "a" / "b") == pytest.approx(facts.free_disk(tmp_path), rel=0.05)
