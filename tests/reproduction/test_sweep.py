"""A whole sweep with tiny models: its cells, what survives an interruption, and what is refused."""

import fcntl
import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import segattn
from segattn.cli.main import app
from segattn.data import DataError
from segattn.reproduction import cell as cells
from segattn.reproduction import sweep as sweeps
from segattn.reproduction.accuracy_curve import AccuracyCurve
from segattn.reproduction.finished_cells import read_cells
from segattn.reproduction.report import report_sweeps
from segattn.reproduction.settings import load_sweep
from segattn.reproduction.sweep import missing_cells, plan, run_sweep


def run(file, output, data_folder, **chosen):
    return run_sweep(load_sweep(file, chosen), output, data_folder=data_folder, tell=lambda line: None)


def contents(output):
    found = {}
    for file in (output / "cells").glob("*.json"):
        content = json.loads(file.read_text())
        for name in ("seconds", "environment"):
            content.pop(name)
        for part in (*content["evaluations"], content["training"] or {}):
            part.pop("seconds", None)
        found[file.name] = content
    return found


@pytest.fixture
def finished(sweep_file, tmp_path, data_folder):
    file = sweep_file()
    assert run(file, tmp_path / "out", data_folder) == []
    return file, tmp_path / "out"


def test_what_a_sweep_leaves(finished):
    file, output = finished
    found, notes = read_cells([output])
    assert notes == []
    assert {cell.names.arm for cell in found} == {"causal", "segments", "untuned"}
    for cell in found:
        what = [(one.task, one.attention, one.scoring) for one in cell.evaluations if one.task in ("sea", "sky")]
        assert what == [
            (task, mask, scoring)
            for task in ("sea", "sky")
            for mask in ("causal", "segments")
            for scoring in ("likelihood", "generation")
        ]
        assert all(len(one.ids) == (8 if one.task == "all 2 tasks" else 4) for one in cell.evaluations)
        assert len(cell.attention_pattern["ahead"]) == 2
        assert cell.own_mask == ("segments" if cell.names.arm == "segments" else "causal")
        if cell.names.arm == "untuned":
            assert cell.training is None
            continue
        assert [point["step"] for point in cell.training["curve"]] == [0, 2, 4]
        assert [point["step"] for point in cell.training["accuracy_curve"]] == [0, 2, 4]
        assert all(len(point["correct"]) == 2 for point in cell.training["accuracy_curve"])
        assert cell.training["samples"] == 8
        own = {one.attention: one.losses for one in cell.evaluations if one.scoring == "likelihood"}
        assert own["causal"] != own["segments"]
    losses = {cell.names.arm: cell.training["curve"][-1]["loss"] for cell in found if cell.training}
    assert losses["causal"] != losses["segments"]
    assert not list((output / "models").iterdir()), "tuned models are removed unless they are to be kept"
    assert missing_cells(load_sweep(file), output) == []


def test_the_two_arms_differ_in_the_mask_alone(finished, sweep_file, tmp_path, data_folder):
    """A causal arm trained as the segments arm would be, but with no token in a segment, equals the causal arm."""
    file = sweep_file(arms={"none": {"causal_roles": ["user", "system"]}}, pattern_items=0)
    run(file, tmp_path / "none", data_folder)
    _, output = finished
    causal = contents(output)["tiny-colors-causal-0.json"]["training"]
    none = contents(tmp_path / "none")["tiny-colors-none-0.json"]["training"]
    assert none["train_losses"] == causal["train_losses"]
    assert none["curve"] == causal["curve"]
    segments = contents(output)["tiny-colors-segments-0.json"]["training"]
    assert segments["train_losses"] != causal["train_losses"]


@pytest.mark.parametrize("part", ["training", "evaluation", "attention"])
def test_an_interrupted_sweep_goes_on(finished, tmp_path, data_folder, monkeypatch, part):
    file, output = finished
    broken = {"training": 0, "evaluation": 0, "attention": 0}
    places = {"training": "_train", "attention": "_pattern"}

    def interrupted(original):
        def call(*args, **kwargs):
            broken[part] += 1
            if broken[part] == (3 if part == "evaluation" else 2):
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        return call

    if part == "evaluation":
        monkeypatch.setattr(cells, "evaluate_task", interrupted(cells.evaluate_task))
    else:
        monkeypatch.setattr(cells._CellRun, places[part], interrupted(getattr(cells._CellRun, places[part])))
    with pytest.raises(KeyboardInterrupt):
        run(file, tmp_path / "again", data_folder)
    calls = []
    train = cells._CellRun._train
    monkeypatch.setattr(cells._CellRun, "_train", lambda self: calls.append(self.names.arm) or train(self))
    assert run(file, tmp_path / "again", data_folder) == []
    assert contents(tmp_path / "again") == contents(output)
    # What was finished is not run again.
    assert calls == {"training": ["segments"], "evaluation": ["segments"], "attention": []}[part]


def test_a_run_that_ends_in_the_middle_goes_on_from_its_checkpoint(finished, tmp_path, data_folder, monkeypatch):
    """What was measured before the checkpoint is kept; losses, curves and answers are those of an unbroken run."""
    file, output = finished
    measure = AccuracyCurve._measure

    def ends(self, state, model):
        if state.global_step == 4:
            raise KeyboardInterrupt  # at once, as the second Ctrl-C is
        measure(self, state, model)

    monkeypatch.setattr(AccuracyCurve, "_measure", ends)
    with pytest.raises(KeyboardInterrupt):
        run(file, tmp_path / "again", data_folder)
    steps = []
    monkeypatch.setattr(
        AccuracyCurve,
        "_measure",
        lambda self, state, model: steps.append(state.global_step) or measure(self, state, model),
    )
    assert run(file, tmp_path / "again", data_folder) == []
    assert contents(tmp_path / "again") == contents(output)
    assert steps == [4, 0, 2, 4]  # the broken arm from its checkpoint on, then the other one


def test_each_arm_its_own_way_only(sweep_file, tmp_path, data_folder):
    file = sweep_file(masks="own", pattern_items=0)
    run(file, tmp_path / "out", data_folder)
    for name, content in contents(tmp_path / "out").items():
        own = "segments" if "segments" in name else "causal"
        assert {one["attention"] for one in content["evaluations"]} == {own}
    page = tmp_path / "report.html"
    found = report_sweeps([tmp_path / "out"], page)
    assert len(found["tables"]["differences"]) == 6  # two tasks and both together, scored two ways
    assert "run the other" not in page.read_text()
    with pytest.raises(DataError, match="masks 'own' there, None now"):
        run(sweep_file(pattern_items=0), tmp_path / "out", data_folder)


def test_a_cell_of_another_process_is_left_to_it(sweep_file, tmp_path, data_folder):
    file, output = sweep_file(), tmp_path / "out"
    names = plan(load_sweep(file))[1]
    (output / "cells").mkdir(parents=True)
    with (output / "cells" / f".{names.file_name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(file, output, data_folder) == [names]
    assert run(file, output, data_folder) == []


def test_results_of_other_settings_do_not_mix(finished, sweep_file, content, data_folder):
    _, output = finished
    content["train"]["learning_rate"] = 2e-2
    with pytest.raises(DataError, match=r"other settings \(learning_rate 0.01 there, 0.02 now\)"):
        run(sweep_file(), output, data_folder)


def test_an_arm_can_be_adapted_after_causal_training(sweep_file, tmp_path, data_folder):
    """Its causal run is what causal training left; reading with segments is what it has learned since."""
    adapt = {
        "steps": 6,
        "batch_size": 2,
        "answers": "given",
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "max_length": 256,
    }
    arms = {
        "adapted": {"attention": "causal", "adapt": {**adapt, "max_new_tokens": 3}},
        "causal": {"attention": "causal"},
    }
    file = sweep_file(arms=arms, keep_models=True)
    run(file, tmp_path / "out", data_folder)
    cell = contents(tmp_path / "out")["tiny-colors-adapted-0.json"]
    causal = contents(tmp_path / "out")["tiny-colors-causal-0.json"]
    assert cell["settings"]["trained_as"] == "segments"
    assert cell["training"]["train_losses"] == causal["training"]["train_losses"]
    assert cell["training"]["curve"] == cell["training"]["accuracy_curve"] == []
    assert (cell["adaptation"]["steps"], cell["adaptation"]["prompts"]) == (6, 12)
    assert causal["adaptation"] is None
    with_segments = [
        sum(sum(one["losses"]) for one in content["evaluations"] if one["losses"] and one["attention"] == "segments")
        for content in (cell, causal)
    ]
    assert with_segments[0] < with_segments[1]

    models = tmp_path / "out" / "models"
    model, tokenizer = segattn.from_pretrained(models / "tiny-colors-adapted-0" / "adapted")
    assert segattn.is_enabled(model)
    # Without its second adapter the model is the causally tuned one.
    tuned, _ = segattn.from_pretrained(models / "tiny-colors-causal-0" / "model", dtype="float32")
    ids = tokenizer("The sky is?", return_tensors="pt")["input_ids"]
    with torch.no_grad(), segattn.causal(model), model.disable_adapter():
        merged = model(input_ids=ids).logits
    with torch.no_grad(), segattn.causal(tuned):
        torch.testing.assert_close(merged, tuned(input_ids=ids).logits, atol=1e-5, rtol=1e-4)


def test_models_can_be_kept_and_follow_their_segments(sweep_file, tmp_path, data_folder):
    file = sweep_file(keep_models=True, arms={"pieces": {"max_segment_length": 6}}, pattern_items=0)
    run(file, tmp_path / "out", data_folder)
    model, _ = segattn.from_pretrained(tmp_path / "out" / "models" / "tiny-colors-pieces-0" / "model")
    assert segattn.modeling.segmenter_of(model).to_dict()["max_segment_length"] == 6
    assert contents(tmp_path / "out")["tiny-colors-pieces-0.json"]["attention_pattern"] is None


def test_the_command(sweep_file, tmp_path, data_folder):
    file, output = sweep_file(pattern_items=0), tmp_path / "out"
    options = ["reproduce", "--config", file, "--data-folder", str(data_folder), "--output", str(output)]
    listed = CliRunner().invoke(app, [*options, "--plan"])
    assert listed.stdout.count("missing") == 3
    done = CliRunner().invoke(app, [*options, "--arm", "causal", "--arm", "segments"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == str(output / "report.html")
    assert "cell 2 of 2: tiny, colors, segments, 0" in done.stderr
    assert "segments" in (output / "report.html").read_text()
    again = CliRunner().invoke(app, [*options, "--plan"])
    assert [line.split()[0] for line in again.stdout.splitlines()] == ["finished", "finished", "missing"]
    unknown = CliRunner().invoke(app, [*options, "--arm", "segment"])
    assert unknown.exit_code == 2
    assert "has no arms segment" in unknown.stderr


def test_ray_is_named_where_it_is_missing(sweep_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match="pip install ray"):
        sweeps.run_on_ray(load_sweep(sweep_file()), tmp_path)


@pytest.mark.slow
def test_on_ray_it_is_the_same_sweep(finished, tmp_path, data_folder):
    pytest.importorskip("ray")
    file, output = finished
    missing = sweeps.run_on_ray(load_sweep(file), tmp_path / "ray", data_folder=data_folder, tell=lambda line: None)
    assert missing == []
    assert contents(tmp_path / "ray") == contents(output)


@pytest.mark.slow
def test_two_processes_train_one_cell_together(finished, tmp_path, data_folder):
    """Under accelerate: the same items, and the numbers of one process with twice the batch."""
    file, output = finished
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        "2",
        "--cpu",
        "--mixed_precision",
        "no",
    ]
    command += ["--num_machines", "1", "--dynamo_backend", "no", "-m", "segattn", "reproduce", "--config", file]
    command += ["--data-folder", str(data_folder), "--output", str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = contents(tmp_path / "two")
    assert set(found) == set(contents(output))
    for name, one in contents(output).items():
        for got, want in zip(found[name]["evaluations"], one["evaluations"], strict=True):
            assert got["ids"] == want["ids"]
            assert got["lengths"] == want["lengths"]
            assert got["chance"] == want["chance"]
    untuned = "tiny-colors-untuned-0.json"
    assert found[untuned]["evaluations"] == contents(output)[untuned]["evaluations"]
