"""A tiny checkpoint to tune, and samples to tune it on."""

import pytest

from cli.tiny_chat import save_checkpoint
from segattn.data import Sample


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return str(save_checkpoint(tmp_path_factory.mktemp("tiny") / "base"))


def make_samples(count, learn="last"):
    """Prompts of different length; every third has two answers."""
    samples = []
    for number in range(count):
        messages = ({"role": "user", "content": f"question {number} " + "x" * (number % 5)},)
        if number % 3 == 0:
            messages += ({"role": "assistant", "content": "so"}, {"role": "user", "content": "and?"})
        samples.append(Sample(messages, f"answer {number}", learn=learn, id=str(number)))
    return samples
