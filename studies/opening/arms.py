"""The arms and the tasks of the study."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segattn.data import Sample, load_samples
from segattn.demo.stories import stories

__all__ = ["ARMS", "TASKS", "Task", "task_samples"]

ARMS: dict[str, dict[str, Any]] = {
    "causal": {"attention": "causal"},
    "hard": {},
    "linear": {"opening_steps": "half"},
    "probability": {"opening_steps": "half", "opening_schedule": "probability"},
    "bottom_up": {"opening_steps": "half", "opening_schedule": "bottom_up"},
    "top_down": {"opening_steps": "half", "opening_schedule": "top_down"},
    "learned": {"opening_steps": "half", "opening_schedule": "learned"},
    "mixed": {"causal_share": 0.5},
    "lower_half": {"layers": "0-14"},
    "upper_half": {"layers": "15-29"},
    "hard, rate 3e-4": {"learning_rate": 3e-4},
    "linear, rate 3e-4": {"opening_steps": "half", "learning_rate": 3e-4},
    "hard, q and v": {"lora_target_modules": ["q_proj", "v_proj"]},
    "linear, q and v": {"opening_steps": "half", "lora_target_modules": ["q_proj", "v_proj"]},
}
"""Name -> settings of `segattn train` that differ from the study's own; "half": half of the task's steps."""


@dataclass(frozen=True)
class Task:
    """What is learned: how long, and on how many held-out items it is measured."""

    steps: int
    items: int = 100
    curve_items: int = 24
    max_new_tokens: int = 12
    data: str | None = None
    difficulty: str = field(default="easy")


TASKS = {"stories": Task(steps=48), "banking77": Task(steps=80, data="banking77")}


def task_samples(task: Task, seed: int, batch_size: int, data_folder: Path) -> tuple[list[Sample], list[Sample]]:
    """Return the training samples of a seed, and the held-out items, which are the same for every seed."""
    count = task.steps * batch_size
    if task.data is None:
        train = [_sample(story, number) for number, story in enumerate(stories(count, seed, task.difficulty, "train"))]
        return train, [_sample(s, n) for n, s in enumerate(stories(task.items, 0, task.difficulty, "held-out"))]
    train, held_out = (load_samples(str(data_folder / task.data), split) for split in ("train", "dev"))
    random.Random(seed).shuffle(train)
    random.Random(0).shuffle(held_out)
    return train[:count], held_out[: task.items]


def _sample(story: Any, number: int) -> Sample:
    return Sample(story.messages, story.answer, story.choices, task="stories", id=str(number))
