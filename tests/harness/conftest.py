"""Checkpoints of the tiny model and local tasks for the lm-evaluation-harness."""

import pytest

from harness.checkpoints import save_all
from harness.local_tasks import write_tasks


@pytest.fixture(scope="session")
def local_tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Folder per kind of checkpoint; all full models have the same weights."""
    return save_all(tmp_path_factory.mktemp("harness-checkpoints"))


@pytest.fixture(autouse=True)
def _no_description_of_the_machine(monkeypatch):
    """It takes a second each time."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
