"""A tiny checkpoint to tune, and samples to tune it on."""

import pytest

from cli.tiny_chat import save_checkpoint
from segattn.data import Sample


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return str(save_checkpoint(tmp_path_factory.mktemp("tiny") / "base"))


@pytest.fixture(autouse=True)
def no_pages(request, monkeypatch):
    """Runs write no page, which takes half a second each, but where the page is what is tested."""
    if not request.module.__name__.endswith("test_train_report"):
        monkeypatch.setattr("segattn.training.run.report_run", lambda file: None)
        monkeypatch.setattr("segattn.training.report.report_run", lambda file: None)


def make_samples(count, learn="last"):
    """Prompts of different length; every third has two answers."""
    samples = []
    for number in range(count):
        messages = ({"role": "user", "content": f"question {number} " + "x" * (number % 5)},)
        if number % 3 == 0:
            messages += ({"role": "assistant", "content": "so"}, {"role": "user", "content": "and?"})
        samples.append(Sample(messages, f"answer {number}", learn=learn, id=str(number)))
    return samples
