import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import segattn
from cli.tiny_chat import HandSegmenter, make_tokenizer
from segattn.cli.loading import load_chat_model, load_segmenter
from segattn.cli.main import app

QUESTION = "What is 12 + 3?"


def generate(*arguments, **options):
    result = CliRunner().invoke(app, ["generate", "--max-new-tokens", "16", *map(str, arguments)], **options)
    assert not isinstance(result.exception, (ValueError, TypeError, OSError)), result.exception
    return result


def batch(text=QUESTION, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    return HandSegmenter(make_tokenizer()).apply_chat_template([*messages, {"role": "user", "content": text}])


def expected(folder, *, segments, system=None):
    """The answer of a model loaded by transformers and PEFT themselves, with segment ids written by hand."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = dict(batch(system=system))
    if segments:
        segattn.enable(model)
    else:
        del inputs["segment_ids"]
    out = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    return make_tokenizer().decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("kind", "attention", "segments", "said"),
    [
        ("base", "auto", False, "records no segmentation: it runs causally"),
        ("base", "causal", False, "records no segmentation: it runs causally"),
        ("base", "segments", True, "Warning: {} was never tuned with segments"),
        ("merged", "auto", True, ""),
        ("merged", "segments", True, ""),
        ("merged", "causal", False, "Warning: {} was tuned with segments"),
        ("adapter", "auto", True, ""),
        ("adapter", "causal", False, "Warning: {} was tuned with segments"),
        ("plain adapter", "auto", False, "records no segmentation: it runs causally"),
        ("plain adapter", "segments", True, "Warning: {} was never tuned with segments"),
        ("causal", "auto", False, ""),
    ],
)
def test_every_kind_of_checkpoint_attends_as_it_should(checkpoints, kind, attention, segments, said):
    folder = checkpoints / kind
    result = generate("--model", folder, "--attention", attention, "--json", QUESTION)
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["text"] == expected(folder, segments=segments)
    assert content["attention"] == ("segments" if segments else "causal")
    assert said.format(folder) in result.stderr
    assert bool(result.stderr.strip()) == bool(said)


def test_segments_and_causal_differ_on_this_question(checkpoints):
    assert expected(checkpoints / "base", segments=True) != expected(checkpoints / "base", segments=False)


def test_json_tells_tokens_segments_and_timing(checkpoints):
    content = json.loads(generate("-m", checkpoints / "merged", "--system", "Be brief.", "--json", QUESTION).stdout)
    segments = batch(system="Be brief.")["segment_ids"][0]
    assert content["prompt_tokens"] == len(segments)
    assert content["segments"] == [
        [int((segments == s).nonzero()[0]), int((segments == s).nonzero()[-1]) + 1] for s in (0, 1)
    ]
    assert content["text"] == expected(checkpoints / "merged", segments=True, system="Be brief.")
    assert 0 < content["first_token_seconds"] <= content["seconds"]
    assert content["load_seconds"] > 0
    assert content["new_tokens"] <= 16


def test_plain_output_is_the_answer_alone(checkpoints):
    result = generate("-m", checkpoints / "merged", QUESTION)
    assert result.stdout.strip() == expected(checkpoints / "merged", segments=True)
    assert result.stderr == ""


def test_a_dash_reads_the_question_from_stdin(checkpoints):
    result = generate("-m", checkpoints / "merged", "-", input=f"{QUESTION}\n")
    assert result.stdout.strip() == expected(checkpoints / "merged", segments=True)


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_a_file_keeps_the_prompt_for_the_next_run(checkpoints, tmp_path, as_json):
    options = ["-m", checkpoints / "merged", "--prefix-cache", tmp_path / "prefixes"]
    plain = generate("-m", checkpoints / "merged", QUESTION).stdout
    assert generate(*options, *as_json, QUESTION).exit_code == 0
    content = json.loads(generate(*options, "--json", QUESTION).stdout)
    assert content["reused_tokens"] == content["prompt_tokens"] - 1
    assert content["text"] == plain.strip()


def test_a_file_of_another_model_is_a_message_and_stays(checkpoints, tmp_path):
    path = tmp_path / "prefixes"
    generate("-m", checkpoints / "merged", "--prefix-cache", path, QUESTION)
    before = path.read_bytes()
    result = generate("-m", checkpoints / "adapter", "--prefix-cache", path, QUESTION)
    assert result.exit_code == 2
    assert "was saved for a model with other" in result.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "{}/base", "-"], "the question is empty"),
        (["-m", "./nowhere", "Hi"], "there is no folder ./nowhere"),
        (["-m", "{}", "Hi"], "has no tokenizer that can be loaded"),
        (["-m", "{}/base", "--device", "abacus", "Hi"], "device 'abacus' cannot be used"),
        (["-m", "{}/base", "x" * 3000], "the conversation has 3019 tokens"),
    ],
)
def test_what_cannot_work_is_a_message(checkpoints, arguments, message):
    result = generate(*[argument.format(checkpoints) for argument in arguments], input="")
    assert result.exit_code == 2
    assert message in result.stderr


def test_weights_that_cannot_be_loaded_are_a_message(checkpoints, tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((checkpoints / "base" / "config.json").read_text())
    result = generate("-m", tmp_path, "Hi")
    assert result.exit_code == 2
    assert "cannot be loaded" in result.stderr


def test_a_checkpoint_without_a_segmenter_is_refused(tmp_path):
    from cli.tiny_chat import make_model

    segattn.save_pretrained(segattn.enable(make_model()), tmp_path / "bare")
    make_tokenizer().save_pretrained(tmp_path / "bare")
    with pytest.raises(segattn.SegmentError, match="saved without a segmenter"):
        load_chat_model(str(tmp_path / "bare"), "auto", "auto", "cpu", print)


def test_the_dtype_can_be_chosen(checkpoints):
    model = load_chat_model(str(checkpoints / "merged"), "auto", "bfloat16", "cpu", print)
    assert model.model.dtype == torch.bfloat16


@pytest.mark.parametrize(("built_in", "wanted"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_is_not_emulated_unless_asked_for(tmp_path, monkeypatch, built_in, wanted):
    from cli.tiny_chat import make_model

    make_model().to(torch.bfloat16).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr("segattn.pretrained.environment.cpu_computes_bfloat16", lambda: built_in)
    assert load_chat_model(str(tmp_path), "auto", "auto", "cpu", print).model.dtype == wanted


@pytest.mark.parametrize(("kind", "policy", "wanted"), [("causal", None, "causal"), ("causal", "prefix", "prefix")])
def test_the_recorded_segmenter_is_taken_unless_another_is_asked_for(checkpoints, kind, policy, wanted):
    segmenter, _ = load_segmenter(str(checkpoints / kind), policy)
    assert segmenter.policy == wanted
