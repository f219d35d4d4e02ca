"""A loss or gradient that is not finite: the run stops before the weights change, with the batch to look at."""

import json
import math

import pytest
import torch

import segattn
from chatml import conversation
from cli.tiny_chat import make_model, make_tokenizer
from segattn.evaluation import answer_loss
from segattn.training import TrainSettings, train
from segattn.training.errors import NotFiniteError
from segattn.training.not_finite import BATCH_FILE
from segattn.training.trainer import SegmentSFTTrainer
from training.conftest import make_samples
from training.test_run import lora, sft

SAMPLES = make_samples(8)


def rows_of(samples):
    """Oracle: ids, labels and segment ids written out by hand."""
    tokenizer = make_tokenizer()
    return [conversation(tokenizer, [*s.messages, {"role": "assistant", "content": s.answer}]) for s in samples]


def spoil(monkeypatch, calls, what):
    """Make the loss, or the gradients, of the batches with these numbers NaN or infinite."""
    training_step, seen = SegmentSFTTrainer.training_step, []

    def spoiled(self, model, inputs, *args, **kwargs):
        loss = training_step(self, model, inputs, *args, **kwargs)
        seen.append(inputs)
        if len(seen) - 1 in calls:
            if what == "gradient":
                next(p for p in model.parameters() if p.grad is not None).grad[0, 0] = math.inf
            else:
                self._watch._losses[-1].fill_(what)  # what `_watch.add` was handed
        return loss

    monkeypatch.setattr(SegmentSFTTrainer, "training_step", spoiled)
    return seen


def run(tiny, folder, **options):
    return train(TrainSettings(), sft(folder, **options), lora(tiny, lora_dropout=0.0), samples=SAMPLES, held_out=[])


@pytest.mark.parametrize("what", [math.nan, -math.inf, "gradient"])
def test_the_run_stops_before_the_weights_change_with_the_batch_saved(tiny, tmp_path, monkeypatch, what):
    """Two batches a step: the fourth one is the second of step 2."""
    options = {"gradient_accumulation_steps": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    seen = spoil(monkeypatch, [3], what)
    where = "the gradient norm" if what == "gradient" else "the loss of batch 2 of 2"
    with pytest.raises(NotFiniteError, match=rf"{where} of step 2 is .*inf|nan.*the weights are those of step 1"):
        run(tiny, tmp_path / "out", **options)
    content = json.loads((tmp_path / "out" / BATCH_FILE).read_text())
    assert content["step"] == 2
    assert content["learning_rate"] > 0
    bad = seen[2:4] if what == "gradient" else seen[3:]
    assert [one["batch"] for one in content["batches"]] == ([1, 2] if what == "gradient" else [2])
    oracle = rows_of(SAMPLES)
    for batch, inputs in zip(content["batches"], bad, strict=True):
        assert len(batch["rows"]) == 2
        for row, ids in zip(batch["rows"], inputs["input_ids"].tolist(), strict=True):
            want = oracle[row["dataset_row"]]
            assert (row["input_ids"], row["labels"], row["segment_ids"]) == want
            assert ids[: len(want[0])] == want[0]
            assert SAMPLES[row["dataset_row"]].answer in row["text"]
            assert math.isfinite(float(row["loss"]))  # of its own: it was made bad from outside
    # What was learned before is there, and goes on to what an unspoiled run becomes.
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]
    monkeypatch.undo()
    resumed = run(tiny, tmp_path / "out", **options, resume_from_checkpoint="last")
    whole = run(tiny, tmp_path / "whole", **options)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


@pytest.mark.parametrize("joined", ["", "padding_free", "packing"])
def test_each_row_has_its_own_loss(tiny, tmp_path, monkeypatch, joined):
    """Oracle: the held-out loss of each sample under the untuned model; a LoRA adapter changes nothing at step 0."""
    options = {joined: True, "max_length": 256} if joined else {}
    spoil(monkeypatch, [0], math.nan)
    with pytest.raises(NotFiniteError):
        run(tiny, tmp_path / "out", per_device_train_batch_size=4, **options)
    [batch] = json.loads((tmp_path / "out" / BATCH_FILE).read_text())["batches"]
    assert batch["loss"] == "nan"
    base = segattn.enable(make_model(), segattn.Segmenter.from_tokenizer(make_tokenizer()))
    oracle = {tuple(row[0]): sample for row, sample in zip(rows_of(SAMPLES), SAMPLES, strict=True)}
    assert len(batch["rows"]) >= 4
    for row in batch["rows"]:
        want = answer_loss(base, segattn.Segmenter.from_tokenizer(make_tokenizer()), [oracle[tuple(row["input_ids"])]])
        assert float(row["loss"]) == pytest.approx(want.mean, abs=1e-4)
        assert (row["dataset_row"] is None) == (joined == "packing")


def test_a_finished_step_is_saved_before_the_end(tiny, tmp_path, monkeypatch):
    """No checkpoint was due yet: nothing of what was learned is lost."""
    spoil(monkeypatch, [2], math.nan)
    with pytest.raises(NotFiniteError):
        run(tiny, tmp_path / "out")
    monkeypatch.undo()
    assert run(tiny, tmp_path / "out", resume_from_checkpoint="last").steps == 3


def test_weights_that_are_not_finite_are_not_saved(tiny, tmp_path, monkeypatch):
    training_step = SegmentSFTTrainer.training_step

    def break_weights(self, model, *args, **kwargs):
        if self.state.global_step == 1:
            with torch.no_grad():
                next(weight for weight in model.parameters() if weight.requires_grad).fill_(math.inf)
        return training_step(self, model, *args, **kwargs)

    monkeypatch.setattr(SegmentSFTTrainer, "training_step", break_weights)
    with pytest.raises(NotFiniteError, match="the loss of step 2 is nan"):
        run(tiny, tmp_path / "out")
    [batch] = json.loads((tmp_path / "out" / BATCH_FILE).read_text())["batches"]
    assert {row["loss"] for row in batch["rows"]} == {"nan"}
    assert not list((tmp_path / "out").glob("checkpoint-*"))
