"""Checkpoints that the tests of this room share."""

import pytest

from serving.tiny_served import save_model


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """(folder of a checkpoint that was tuned with segments, the same model for the oracle)."""
    folder = tmp_path_factory.mktemp("served")
    return folder, save_model(folder)


@pytest.fixture(scope="session")
def ordinary(tmp_path_factory):
    """The folder of a checkpoint that says nothing of segments."""
    folder = tmp_path_factory.mktemp("ordinary")
    save_model(folder, entry=False)
    return folder
