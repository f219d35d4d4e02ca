import json

import pytest
import torch
import transformers

from segattn.data import DataError
from segattn.demo import experiment
from segattn.demo.experiment import run_experiment
from segattn.demo.settings import DemoSettings, demo_samples
from segattn.evaluation import wilson_interval


@pytest.fixture(scope="module")
def model_path(smollm2_tokenizer, tmp_path_factory):
    """A tiny random model that speaks the real tokenizer."""
    path = tmp_path_factory.mktemp("tiny")
    config = transformers.LlamaConfig(
        vocab_size=len(smollm2_tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    smollm2_tokenizer.save_pretrained(path)
    return str(path)


def settings_for(model_path, **changes):
    small = {
        "difficulty": "easy", "steps": 4, "batch_size": 2, "opening_steps": 2, "curve_samples": 3, "matrix_samples": 5,
        "curve_points": 2, "warmup_steps": 1, "lora_rank": 2,
    }  # fmt: skip
    return DemoSettings(**{"model": model_path, **small, **changes})


@pytest.fixture(scope="module")
def finished(model_path, tmp_path_factory):
    output = tmp_path_factory.mktemp("demo")
    lines = []
    return run_experiment(settings_for(model_path), output, tell=lines.append), output, lines


def test_every_cell_is_there(finished):
    results, output, lines = finished
    assert {tuned: set(row) for tuned, row in results["matrix"].items()} == {
        tuned: {"causal", "segments"} for tuned in ("base", "causal", "segments")
    }
    for row in results["matrix"].values():
        for cell in row.values():
            expected = wilson_interval(sum(cell["correct"]), 5)
            assert cell["accuracy"] == {"value": expected.value, "low": expected.low, "high": expected.high}
            assert len(cell["losses"]) == 5
    for arm in results["arms"].values():
        assert [point["step"] for point in arm["curve"]] == [0, 2, 4]
    assert len(lines) == 5
    assert json.loads((output / "results.json").read_text()) == results


def test_the_masks_were_really_different(finished):
    matrix = finished[0]["matrix"]
    assert matrix["base"]["causal"]["losses"] != matrix["base"]["segments"]["losses"]
    assert matrix["causal"]["causal"]["losses"] != matrix["base"]["causal"]["losses"]


def test_both_arms_start_from_the_same_model_under_their_own_mask(finished, model_path):
    """Step 0 of each curve is the untuned model: its loss under that mask, on the first held-out samples."""
    results = finished[0]
    for arm in ("causal", "segments"):
        # Answers of one and the same token count weigh alike, so the mean over tokens is the mean over samples.
        _, held_out = demo_samples(settings_for(model_path))
        assert [sample.answer for sample in held_out[:3]]
        start = results["arms"][arm]["curve"][0]["loss"]
        from_matrix = results["matrix"]["base"][arm]["losses"][:3]
        assert start == pytest.approx(sum(from_matrix) / 3, rel=0.02)


def test_a_finished_run_is_not_run_again(finished, model_path, monkeypatch):
    results, output, _ = finished
    monkeypatch.setattr(experiment, "_train_arm", lambda *a: pytest.fail("trained again"))
    monkeypatch.setattr(experiment, "_evaluate", lambda *a: pytest.fail("evaluated again"))
    again = run_experiment(settings_for(model_path), output, tell=lambda line: None)
    assert again["matrix"] == results["matrix"]
    assert again["comparisons"] == results["comparisons"]


def test_a_run_that_was_cut_off_goes_on_with_the_missing_cell(finished, model_path, monkeypatch):
    results, output, _ = finished
    cut = json.loads(json.dumps(results))
    del cut["matrix"]["segments"]["causal"]
    del cut["comparisons"]
    (output / "results.json").write_text(json.dumps(cut))
    monkeypatch.setattr(experiment, "_train_arm", lambda *a: pytest.fail("trained again"))
    again = run_experiment(settings_for(model_path), output, tell=lambda line: None)
    assert again["matrix"]["segments"]["causal"]["losses"] == pytest.approx(
        results["matrix"]["segments"]["causal"]["losses"]
    )
    assert again["comparisons"] == results["comparisons"]


def test_results_of_other_settings_are_kept(finished, model_path):
    _, output, _ = finished
    before = (output / "results.json").read_text()
    with pytest.raises(DataError, match=r"steps 4 -> 6.*--fresh"):
        run_experiment(settings_for(model_path, steps=6), output)
    assert (output / "results.json").read_text() == before


def test_a_damaged_results_file_is_named(tmp_path, model_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(DataError, match=r"results\.json is damaged"):
        run_experiment(settings_for(model_path), tmp_path)


def test_the_example_is_a_prompt_with_its_segments(finished):
    example = finished[0]["example"]
    assert len(example["tokens"]) == len(example["segment_ids"])
    text = "".join(example["tokens"])
    assert text.endswith(f"{example['answer']}<|im_end|>\n") or text.endswith(f"{example['answer']}<|im_end|>")
    in_user = "".join(t for t, s in zip(example["tokens"], example["segment_ids"], strict=True) if s == 1)
    assert in_user.startswith("<|im_start|>user")
    assert "?" in in_user


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"opening_steps": 9}, "opening_steps is 9 and steps 4"),
        ({"difficulty": "impossible"}, "difficulty is 'impossible'; expected one of easy"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        settings_for("smollm2", **change)


def test_data_of_ones_own(tmp_path):
    question = "Is {} even?\n\nAnswer format: true/false"
    rows = [
        {"instruction": question.format(n), "input": "", "output": f"the correct answer is {word}", "answer": word}
        for n, word in enumerate(["true", "false"] * 4)
    ]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, held_out = demo_samples(settings_for("smollm2", data=str(tmp_path)))
    assert len(train) == 8
    assert len(held_out) == 5
    assert set(held_out[0].choices) == {"the correct answer is true", "the correct answer is false"}


def test_data_without_choices_is_refused(tmp_path):
    rows = [{"prompt": f"question {n}", "completion": "yes"} for n in range(9)]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="without choices"):
        demo_samples(settings_for("smollm2", data=str(tmp_path)))


@pytest.mark.parametrize(("built_in", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_the_dtype_is_the_one_that_the_processor_computes(monkeypatch, built_in, dtype):
    monkeypatch.setattr("segattn.pretrained.environment.cpu_computes_bfloat16", lambda: built_in)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert DemoSettings().dtype == dtype
    with pytest.raises(DataError, match="expected bfloat16 or float32"):
        DemoSettings(dtype="float16")
