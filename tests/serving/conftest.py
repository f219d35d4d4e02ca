"""Checkpoints that the tests of this room share."""

import importlib.util

import pytest

if importlib.util.find_spec("vllm") is not None:
    # Sets the number of threads, which must stand before torch is imported: threads that wait for one another spin.
    import serving.engines  # noqa: F401


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """(folder of a checkpoint that was tuned with segments, the same model for the oracle)."""
    from serving.tiny_served import save_model

    folder = tmp_path_factory.mktemp("served")
    return folder, save_model(folder)


@pytest.fixture(scope="session")
def ordinary(tmp_path_factory):
    """The folder of a checkpoint that says nothing of segments."""
    from serving.tiny_served import save_model

    folder = tmp_path_factory.mktemp("ordinary")
    save_model(folder, entry=False)
    return folder
