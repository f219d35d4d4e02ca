import subprocess

import pytest
import torch

from segattn.bench import machine
from segattn.bench.errors import BenchError
from segattn.bench.machine import device_name, folder_name, open_device, pick_dtype, provenance

CPU = torch.device("cpu")


def test_provenance_says_where_a_result_comes_from():
    found = provenance(CPU)
    assert {"device", "environment", "commit", "code", "began"} == set(found)
    assert found["environment"]["torch"] == torch.__version__
    assert "free" not in found["environment"]["memory"]
    assert f"{torch.get_num_threads()} thread" in found["device"]


def test_the_folder_is_the_devices_name(monkeypatch):
    monkeypatch.setattr(machine, "environment", lambda: {"processor": "Intel(R) Xeon(R) @ 2.00GHz"})
    assert device_name(CPU).startswith("Intel(R) Xeon(R) @ 2.00GHz, ")
    assert folder_name(CPU).startswith("intel-r-xeon-r-2-00ghz-")


def test_no_commit_is_claimed_where_git_knows_none(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    machine._commit.cache_clear()
    assert provenance(CPU)["commit"] is None
    machine._commit.cache_clear()


@pytest.mark.parametrize("name", ["tpu", "mps", "cuda:99", "cpu:x", ""])
def test_bad_devices_are_refused(name):
    with pytest.raises(BenchError, match="the device"):
        open_device(name)


def test_dtypes_by_name(monkeypatch):
    monkeypatch.setattr(machine, "cpu_computes_bfloat16", lambda: False)
    assert pick_dtype("auto", CPU) == torch.float32
    monkeypatch.setattr(machine, "cpu_computes_bfloat16", lambda: True)
    assert pick_dtype("auto", CPU) == torch.bfloat16
    assert pick_dtype("float16", CPU) == torch.float16
    with pytest.raises(BenchError, match="the dtype is 'int8'; expected auto, float32"):
        pick_dtype("int8", CPU)
