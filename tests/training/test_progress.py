"""The progress line, and the rates it shows: what is said, where, and that nothing else speaks."""

import io
import math
import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PrinterCallback, ProgressCallback

from segattn.reports.smoothing import Smoothed
from segattn.training import ModelSettings, SFTSettings, TrainSettings, train
from segattn.training import throughput as throughput_module
from segattn.training.progress import ProgressLine, shown_progress
from segattn.training.throughput import Throughput
from segattn.training.trainer import SegmentSFTTrainer
from training.conftest import make_samples


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(tiny, folder, settings=None, held_out=(), samples=7, **options):
    arguments = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "train_sampling_strategy": "random",
        **options,
    }
    model = ModelSettings(model_name_or_path=tiny, lora_r=4)
    return train(
        settings or TrainSettings(),
        SFTSettings(str(folder), **arguments),
        model,
        samples=make_samples(samples),
        held_out=held_out,
    )


LINE = re.compile(
    r"step (\d) of 4, loss \d+\.\d{4}(, 0:\d\d:\d\d left)?, held-out \d+\.\d{4}( \(opening \d+\.\d{4}\))?, "
    r"[\d,]+ tokens/s \([\d,]+ of answers\), padding \d+ %(, opening bias (-\d\.\d))?"
)


def test_a_pipe_gets_plain_lines_and_stdout_nothing(tiny, tmp_path, capsys):
    settings = TrainSettings(opening_steps=3)
    run(tiny, tmp_path, settings, make_samples(3), eval_strategy="steps", eval_steps=2, disable_tqdm=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = [line for line in shown.err.splitlines() if line.startswith("step ")]
    logged = [found for line in lines if (found := LINE.fullmatch(line))]
    assert [found[1] for found in logged] == ["2", "4"]
    assert [bool(found[2]) for found in logged] == [True, False]  # nothing is left at the end
    assert [found[5] for found in logged] == ["-2.7", None]  # -8 * (1 - 2/3)
    held_out = [line for line in lines if line not in [found[0] for found in logged]]
    assert [line.split(",")[0] for line in held_out] == ["step 0 of 4"] * 2 + ["step 2 of 4"] * 2 + ["step 4 of 4"]
    assert [line.endswith("under the opening bias") for line in held_out] == [False, True, False, True, False]


def test_a_terminal_gets_one_live_line_and_no_other_bar(tiny, tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    run(tiny, tmp_path, held_out=make_samples(3), eval_strategy="steps", eval_steps=2, disable_tqdm=False)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "4/4" in text
    assert re.search(r"loss \d\.\d+, held-out \d\.\d+, [\d,]+ tokens/s \([\d,]+ of answers\), padding \d+ %", text)
    assert "it/s]" not in text.split("step", 1)[1]  # tqdm's own mark, after the model is loaded
    assert "{'loss'" not in text


def test_disable_tqdm_means_plain_lines_on_a_terminal_too(tiny, tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    run(tiny, tmp_path, disable_tqdm=True)
    # The other bars of the libraries that load the model are not ours.
    steps = terminal.getvalue()[terminal.getvalue().index("step ") :]
    assert "\x1b[" not in steps
    assert len(steps.splitlines()) == 2


def trainer_with(*callbacks, disable_tqdm=True):
    present = list(callbacks)

    def pop(kind):
        found = next((one for one in present if isinstance(one, kind)), None)
        if found is not None:
            present.remove(found)
        return found

    return SimpleNamespace(
        args=SimpleNamespace(disable_tqdm=disable_tqdm),
        pop_callback=pop,
        add_callback=present.append,
        remove_callback=present.remove,
        present=present,
    )


@pytest.mark.parametrize("theirs", [ProgressCallback, PrinterCallback])
def test_it_takes_the_place_of_the_bars_of_transformers(theirs):
    trainer = trainer_with(theirs())
    with shown_progress(trainer):
        assert [type(one) for one in trainer.present] == [ProgressLine]
    assert trainer.present == []


def test_a_notebook_keeps_its_own_table():
    table = SimpleNamespace()
    trainer = trainer_with(table)
    with shown_progress(trainer):
        assert trainer.present == [table]
    assert trainer.present == [table]


def test_the_terminal_is_given_back_where_training_breaks(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    trainer = trainer_with(ProgressCallback(), disable_tqdm=False)
    state = SimpleNamespace(global_step=0, max_steps=9, is_world_process_zero=True)
    bars = []

    def break_off():
        with shown_progress(trainer):
            [line] = trainer.present
            line.on_train_begin(None, state, None)
            bars.append(line._bar)
            assert bars[0].live.is_started
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        break_off()
    assert not bars[0].live.is_started


@pytest.mark.parametrize("live", [True, False])
def test_only_the_main_process_speaks(live, capsys):
    line = ProgressLine(live)
    state = SimpleNamespace(global_step=0, max_steps=2, is_world_process_zero=False)
    line.on_train_begin(None, state, None)
    line.on_step_begin(None, state, None)
    line.on_prediction_step(None, state, None)
    line.on_step_end(None, state, None)
    line.on_log(None, state, None, logs={"loss": 1.0})
    line.on_log(None, state, None, logs={"eval_loss": 1.0})
    line.on_train_end(None, state, None)
    assert capsys.readouterr() == ("", "")


def test_a_loss_that_is_not_a_number_is_shown_and_then_forgotten(capsys):
    line, state = ProgressLine(live=False), SimpleNamespace(global_step=1, max_steps=9, is_world_process_zero=True)
    line.on_train_begin(None, SimpleNamespace(**{**vars(state), "global_step": 0}), None)
    for loss in (math.nan, math.inf, 2.0):
        line.on_log(None, state, None, logs={"loss": loss})
    assert [text.split(",")[1] for text in capsys.readouterr().err.splitlines()] == [
        " loss nan", " loss inf", " loss 2.0000",
    ]  # fmt: skip


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0.01, 1))
def test_the_smoothed_loss_stays_between_the_values_it_saw(values, weight):
    smoothed = Smoothed(weight)
    for value in values:
        assert math.isnan(smoothed.add(math.nan))  # forgets what came before
        assert smoothed.add(value) == value
    for value in values:
        mean = smoothed.add(value)
        assert min(values) - 1e-6 <= mean <= max(values) + 1e-6


def test_rates_count_tokens_and_answers_but_no_padding_and_no_evaluation(monkeypatch):
    now = iter([0.0, 4.0, 100.0, 101.0, 101.0, 110.0, 110.0])
    monkeypatch.setattr(throughput_module.time, "perf_counter", lambda: next(now))
    counted = Throughput()
    assert counted.take() == {}
    ids = torch.zeros(2, 10, dtype=torch.int64)
    mask = torch.tensor([[1] * 10, [1] * 5 + [0] * 5])
    labels = torch.full((2, 10), -100)
    labels[0, 7:] = 3
    labels[1, 0] = 3  # a first token is predicted by none
    counted.add({"input_ids": ids, "attention_mask": mask, "labels": labels})  # at 0
    with counted.paused():  # from 4 to 100
        pass
    assert counted.take(lambda counts: 2 * counts) == {  # at 101: two processes, 5 seconds
        "tokens_per_second": 6.0, "answer_tokens_per_second": 1.2, "padding_share": 0.25,
    }  # fmt: skip
    counted.add({"input_ids": ids, "labels": labels})  # joined rows
    assert counted.take()["padding_share"] == 0.0


def test_the_rates_of_a_run_are_those_of_its_rows(tiny, tmp_path, monkeypatch):
    """Shares taken down by hand at each training step; the clock stands still while held-out data is scored."""
    batches, running = [], []
    training_step, evaluate = SegmentSFTTrainer.training_step, SegmentSFTTrainer._exact_evaluate

    def watch(self, model, inputs, *args, **kwargs):
        batches.append({name: inputs[name].clone() for name in ("attention_mask", "labels")})
        return training_step(self, model, inputs, *args, **kwargs)

    def ask(self, *args, **kwargs):
        running.append(self.throughput._since)
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(SegmentSFTTrainer, "training_step", watch)
    monkeypatch.setattr(SegmentSFTTrainer, "_exact_evaluate", ask)
    result = run(tiny, tmp_path, None, make_samples(2), logging_steps=4, eval_strategy="steps", eval_steps=1)
    assert len(batches) == 4
    assert running == [None] * 5
    [speed] = result.speed
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    answers = sum(int((batch["labels"] >= 0).sum()) for batch in batches)
    positions = sum(batch["attention_mask"].numel() for batch in batches)
    assert speed["step"] == 4
    assert speed["padding_share"] == pytest.approx(1 - tokens / positions, abs=1e-4)
    assert speed["answer_tokens_per_second"] / speed["tokens_per_second"] == pytest.approx(answers / tokens, rel=0.01)
