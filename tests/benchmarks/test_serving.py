"""The benchmark of serving; its quick form needs vLLM, and is run by hand."""

import importlib.util

import pytest

from benchmarks.running import script


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is here")
def test_without_vllm_it_says_so():
    assert "nothing is measured" in script("serving")
