"""An evaluation: its summary, and how it goes on after a stop."""

import json
import math

import pytest

import segattn
from cli.tiny_chat import make_model, make_tokenizer
from evaluation.test_choices import SAMPLES
from segattn.data import DataError, Sample
from segattn.evaluation import choices as choices_module
from segattn.evaluation import evaluate, rank_choices
from segattn.evaluation.choices import ChoiceResult
from segattn.evaluation.run import average_accuracy, model_fingerprint, summarize

SEGMENTER = segattn.Segmenter.from_tokenizer(make_tokenizer())


@pytest.fixture
def model():
    return segattn.enable(make_model(), SEGMENTER)


def result(task, right, count=2, loss=1.0):
    """A result whose right answer is the first of `count` choices and has `loss` nats per token."""
    scores = (-2 * loss, *[-2 * loss + (-1 if right else 1)] * (count - 1))
    return ChoiceResult(task, "1", "f", tuple("abcdef"[:count]), 0, scores, (2,) * count)


def test_the_summary_counts_per_task():
    results = [result("x", True, loss=0.5), result("y", True, 4), result("x", False, loss=1.5), result("y", True, 2)]
    x, y = summarize(results)
    assert (x.task, x.samples, x.accuracy.value, x.chance, x.loss.value) == ("x", 2, 0.5, 0.5, 1.0)
    assert (y.task, y.samples, y.accuracy.value, y.chance) == ("y", 2, 1.0, pytest.approx(3 / 8))
    assert x.accuracy.low == pytest.approx(0.0945, abs=1e-4)  # Wilson, 1 of 2
    average = average_accuracy([x, y])
    assert average.value == 0.75
    assert average.low == pytest.approx(0.75 - 1.96 * math.sqrt(0.25 / 2) / 2)
    assert average.high == pytest.approx(min(1, 0.75 + 1.96 * math.sqrt(0.25 / 2) / 2))
    assert average_accuracy([x]) is None


def test_without_choices_only_the_loss_is_measured(model):
    free = Sample(({"role": "user", "content": "u"},), "a")
    evaluation = evaluate(model, SEGMENTER, [free])
    [task] = evaluation.tasks
    assert (task.accuracy, task.chance) == (None, None)
    assert task.loss.value > 0
    assert json.loads(json.dumps(evaluation.to_dict()))["tasks"][0]["accuracy"] is None


def test_results_are_those_of_rank_choices(model):
    evaluation = evaluate(model, SEGMENTER, SAMPLES, attention="causal", settings={"model": "m"})
    assert evaluation.results == rank_choices(model, SEGMENTER, SAMPLES, attention="causal")
    assert evaluation.settings == {"model": "m", "attention": "causal", "policy": "turns"}


def test_a_stopped_evaluation_goes_on_where_it_was(model, tmp_path, monkeypatch):
    rows = tmp_path / "deep" / "rows.jsonl"
    whole = evaluate(model, SEGMENTER, SAMPLES, batch_size=2)

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, SEGMENTER, SAMPLES, batch_size=2, rows=rows, progress=stop)
    kept = rows.read_text().splitlines()
    assert len(kept) == 1 + 2
    rows.write_text("\n".join(kept) + "\n" + kept[1][:20])  # and the machine died while the next line was written
    scored = []
    score_answers = choices_module.score_answers

    def record(model, segmenter, samples, *args, **kwargs):
        scored.extend(samples)
        return score_answers(model, segmenter, samples, *args, **kwargs)

    monkeypatch.setattr(choices_module, "score_answers", record)
    resumed = evaluate(model, SEGMENTER, SAMPLES, batch_size=2, rows=rows)
    assert len(scored) == 2
    for got, want in zip(resumed.results, whole.results, strict=True):
        assert got.log_likelihoods == pytest.approx(want.log_likelihoods, abs=1e-4)
        assert (got.id, got.choices, got.answer) == (want.id, want.choices, want.answer)
    again = evaluate(model, SEGMENTER, SAMPLES, rows=rows)
    assert len(scored) == 2
    assert again.results == resumed.results
    fewer = evaluate(model, SEGMENTER, SAMPLES[:2], rows=rows)
    assert fewer.results == resumed.results[:2]


@pytest.mark.parametrize("change", [{"attention": "causal"}, {"settings": {"model": "b"}}])
def test_results_of_another_run_are_not_mixed_in(model, tmp_path, change):
    rows = tmp_path / "rows.jsonl"
    evaluate(model, SEGMENTER, SAMPLES[:1], rows=rows, settings={"model": "a"})
    with pytest.raises(segattn.SegmentAttentionError, match=r"holds results of another run \((attention|model): 's?"):
        evaluate(model, SEGMENTER, SAMPLES[:1], rows=rows, **{"settings": {"model": "a"}, **change})


def test_another_file_is_not_taken_for_results(model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "p"}\n')
    with pytest.raises(segattn.SegmentAttentionError, match="is no results file"):
        evaluate(model, SEGMENTER, SAMPLES[:1], rows=rows)
    assert rows.read_text() == '{"prompt": "p"}\n'


def test_nothing_and_repeated_samples_are_refused(model):
    with pytest.raises(DataError, match="got 0 samples"):
        evaluate(model, SEGMENTER, [])
    with pytest.raises(DataError, match="got 2 samples, 1 of them different"):
        evaluate(model, SEGMENTER, [SAMPLES[0], SAMPLES[0]])


def test_a_replaced_model_has_another_fingerprint(tmp_path):
    assert model_fingerprint("owner/name") == []
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"a")
    first = model_fingerprint(str(tmp_path))
    file.write_bytes(b"bb")
    assert model_fingerprint(str(tmp_path)) != first
