"""The study of gradual opening: its page says what its rows say, and its cells run."""

import json
import math
from statistics import fmean, stdev

import pytest

pytest.importorskip("matplotlib")

from studies.opening import __main__ as command
from studies.opening import page
from studies.opening.arms import ARMS, TASKS, Task, task_samples
from studies.opening.cell import run_cell

from cli.tiny_chat import save_checkpoint
from segattn.training import ModelSettings, SFTSettings, TrainSettings
from segattn.training.settings import check_settings


def test_the_page_is_what_the_results_say():
    assert page.page(page.read(page.RESULTS)) == page.PAGE.read_text(encoding="utf-8")


def test_every_cell_of_the_results_is_whole():
    for task, arms in page.read(page.RESULTS).items():
        for arm, seeds in arms.items():
            for row in seeds.values():
                assert [point[0] for point in row["curve"]][-1] == row["steps"] == TASKS[task].steps
                assert len(row["measured"]["causal"]["correct"]) == TASKS[task].items
                assert (row["ahead"] is None) == (arm == "causal")


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_run_of_train(arm):
    own = {name: value for name, value in ARMS[arm].items() if name not in ("learning_rate", "lora_target_modules")}
    settings = TrainSettings(**{**own, **({"opening_steps": 2} if "opening_steps" in own else {})})
    check_settings(settings, SFTSettings(bf16=False), ModelSettings())
    assert settings.attention == page.own_mask(arm)


def test_an_interval_by_hand():
    values = [0.1, 0.4, 0.3]
    half = 4.303 * stdev(values) / math.sqrt(3)  # Student's t with two degrees of freedom
    assert page.interval(values) == f"{fmean(values):.3f} ± {half:.3f}"
    assert page.shown([0.2, 0.21, 0.19]).startswith("**")
    assert page.shown(values) == page.interval(values)


def test_a_cell_from_training_to_its_row(tmp_path):
    task = Task(steps=8, items=6, curve_items=4, max_new_tokens=2)
    model = str(save_checkpoint(tmp_path / "base"))
    train, items = task_samples(task, 0, 1, tmp_path)
    assert not {str(one.messages) for one in train} & {str(one.messages) for one in items}
    row = json.loads(json.dumps(run_cell("linear", task, 0, model, train, items)))
    assert [point[0] for point in row["curve"]] == list(range(9))
    assert [point[2] is not None for point in row["curve"]] == [True] * 4 + [False] * 5
    assert len(row["measured"]["segments"]["losses"]) == 6
    shares = [share for layer in row["ahead"] for share in layer]
    assert all(0 < share < 1 for share in shares)


def test_a_cell_that_is_there_is_not_run_again(tmp_path, monkeypatch):
    file = tmp_path / "cells.jsonl"
    file.write_text(json.dumps({"task": "stories", "arm": "hard", "seed": 0}) + "\n")
    monkeypatch.setattr(command, "run_cell", lambda *args: {"ran": args[0]})
    for arm in ("hard", "linear"):
        command._run_if_missing("stories", arm, 0, "-", tmp_path, file)
    assert [json.loads(line).get("ran") for line in file.read_text().splitlines()] == [None, "linear"]
