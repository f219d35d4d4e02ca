"""A tiny checkpoint, tiny data, and a sweep over both."""

import json

import pytest
import yaml

from cli.tiny_chat import save_checkpoint

COLORS = ("red", "green", "blue")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return str(save_checkpoint(tmp_path_factory.mktemp("tiny") / "base"))


@pytest.fixture(autouse=True)
def no_training_pages(monkeypatch):
    """Training writes no page, which takes half a second each."""
    monkeypatch.setattr("segattn.training.run.report_run", lambda file: None)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """`colors` (two tasks with choices) and `reading` (no choices)."""
    folder = tmp_path_factory.mktemp("data")
    for task in ("sky", "sea"):
        rows = [
            {
                "instruction": f"The {task} of {number} is?\n\nAnswer format: {'/'.join(COLORS)}",
                "output": f"it is {COLORS[number % 3]}",
                "answer": COLORS[number % 3],
            }
            for number in range(12)
        ]
        (folder / "colors" / task).mkdir(parents=True)
        for split, part in (("train", rows[:8]), ("dev", rows[8:])):
            (folder / "colors" / task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, part)))
    (folder / "reading").mkdir()
    rows = [{"context": f"A.\n\nB is {n}.", "question": "B?", "answers": [str(n)]} for n in range(9)]
    for split, part in (("train", rows[:6]), ("dev", rows[6:])):
        (folder / "reading" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, part)))
    return folder


@pytest.fixture
def content(tiny):
    """A sweep file's content."""
    return {
        "models": {"tiny": tiny},
        "data": {
            "colors": {
                "path": "colors",
                "train": {"max_steps": 4},
                "curve_items": 2,
                "scoring": ["likelihood", "generation"],
                "max_new_tokens": 3,
            }
        },
        "arms": {"causal": {"attention": "causal"}, "segments": {}, "untuned": None},
        "seeds": [0],
        "train": {
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "lora_r": 4,
            "lora_dropout": 0.0,
            "dtype": "float32",
            "use_cpu": True,
        },
        "curve_points": 2,
        "pattern_items": 2,
        "batch_size": 4,
    }


@pytest.fixture
def sweep_file(content, tmp_path):
    """Writes the content, changed as the test says."""

    def write(**changes):
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump({**content, **changes}))
        return str(file)

    return write
