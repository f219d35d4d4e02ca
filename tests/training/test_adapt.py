"""A whole conversion of a tiny model: what it saves and measures, how it goes on, and what it refuses."""

import json
import os
import signal

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import MambaConfig, MambaForCausalLM

import segattn
from chatml import conversation
from cli.tiny_chat import make_model, make_tokenizer, save_checkpoint
from segattn.data import DataError, Sample
from segattn.training import SegmentSFTTrainer
from segattn.training import lessons as lessons_module
from segattn.training.adapt import adapt
from segattn.training.adapt_settings import AdaptSettings
from segattn.training.agreement import greedy_answers, measure_agreement
from segattn.training.distillation import DistillationTrainer
from segattn.training.lessons import collect_lessons, rows_of
from segattn.training.prompts import Prompt

TEXTS = [f"question {number} " + "x" * (number % 5) for number in range(9)]
PROMPTS = [Prompt.alone(({"role": "user", "content": text},), text) for text in TEXTS]


def settings(base, folder, **options):
    arguments = {
        "steps": 3,
        "batch_size": 2,
        "held_out": 3,
        "max_new_tokens": 6,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "lora_r": 2,
        "shuffle": 0,
        "dtype": "float32",
        **options,
    }
    return AdaptSettings(model=str(base), output_dir=str(folder), **arguments)


def run(base, folder, resume=False, progress=None, prompts=PROMPTS, **options):
    return adapt(settings(base, folder, **options), prompts=prompts, resume=resume, progress=progress)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items() if "lora" in name}


def logits(model, text=TEXTS[0]):
    ids, _, _ = conversation(make_tokenizer(), [{"role": "user", "content": text}], generation_prompt=True)
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits


def test_what_is_saved_is_an_adapter_that_runs_with_segments(tiny, tmp_path):
    result = run(tiny, tmp_path / "out")
    loaded, tokenizer = segattn.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == make_tokenizer().chat_template
    torch.testing.assert_close(logits(loaded), logits(result.model), atol=1e-6, rtol=0)
    with segattn.causal(loaded), loaded.disable_adapter():
        torch.testing.assert_close(logits(loaded), logits(make_model()), atol=1e-6, rtol=0)
    assert not torch.allclose(logits(loaded), logits(segattn.enable(make_model(), result.segmenter)), atol=1e-2)
    assert json.loads((tmp_path / "out" / "segment_attention.json").read_text())["segmenter"]["policy"] == "turns"
    assert result.adapter_bytes == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    content = json.loads((tmp_path / "out" / "adapt_result.json").read_text())
    assert content["result"] == result.to_dict()
    assert content["settings"]["steps"] == 3
    assert "torch" in content["environment"]


def test_the_held_out_report_is_of_the_students_it_names(tiny, tmp_path):
    result = run(tiny, tmp_path / "out", compare_sft=True)
    students = [
        "base, causal",
        "base, segments",
        "adapted, segments",
        "adapted, causal",
        "sft, segments",
        "sft, causal",
    ]
    assert list(result.held_out) == students
    for one in result.held_out["base, causal"]:  # the teacher beside itself
        assert one.kl == pytest.approx(0, abs=1e-5)
        assert (one.top1, one.exact, one.prefix) == (1.0, True, 1.0)
    # The base with segments, once more: a stock model of its own, never wrapped by PEFT.
    [before, *_] = result.held_out["base, segments"]
    row = json.loads((tmp_path / "out" / "answers.jsonl").read_text().splitlines()[1])
    assert before.tokens in range(1, 7)
    assert before.kl > 1e-3
    assert row["text"] is not None
    after = result.held_out["adapted, segments"]
    tokens = [one.tokens for one in after]
    mean = sum(one.kl * count for one, count in zip(after, tokens, strict=True)) / sum(tokens)
    assert result.curve[-1] == (3, pytest.approx(mean, abs=1e-5))
    assert result.curve[0][0] == 0
    assert (tmp_path / "out" / "sft" / "adapter_model.safetensors").is_file()


def test_agreement_is_that_of_stock_models_under_hand_built_masks(tiny, tmp_path):
    """KL, likeliest tokens, loss and greedy answers of the untuned model, in float64 and token by token."""
    from oracle import loop_mask

    result = run(tiny, tmp_path / "out")
    tokenizer, stock = make_tokenizer(), make_model()
    for text, one in zip(TEXTS, result.held_out["base, segments"], strict=False):
        chat = [{"role": "user", "content": text}]
        ids, _, segments = conversation(tokenizer, chat, generation_prompt=True)
        answers = {}
        for rule, numbers in (("causal", [-1] * len(ids)), ("segments", segments)):
            tokens = []
            while len(tokens) < 6 and 257 not in tokens:
                row, mask = ids + tokens, loop_mask([numbers + [-1] * len(tokens)])
                with torch.no_grad():
                    tokens.append(int(stock(torch.tensor([row]), attention_mask=mask).logits[0, -1].argmax()))
            answers[rule] = tokens
        want = answers["causal"]
        row, start = torch.tensor([ids + want]), len(ids) - 1
        p, q = (
            torch.softmax(
                stock(row, attention_mask=loop_mask([numbers + [-1] * len(want)])).logits[0, start:-1].double(), -1
            ).detach()
            for numbers in ([-1] * len(ids), segments)
        )
        assert one.kl == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), abs=1e-5)
        assert one.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
        assert one.loss == pytest.approx(float(-q[range(len(want)), want].log().mean()), abs=1e-5)
        assert one.exact == (answers["segments"] == want)
        shared = 0
        while shared < min(len(want), len(answers["segments"])) and want[shared] == answers["segments"][shared]:
            shared += 1
        assert one.prefix == shared / len(want)


def test_the_divergence_falls_on_what_is_learned(tiny, tmp_path):
    """Four prompts, many times over: the segment model comes to say what the causal one says."""
    result = run(tiny, tmp_path / "out", steps=60, batch_size=4, prompts=PROMPTS[:4], held_out=0, lora_r=8)
    first, last = (loss for _, loss in (result.train_losses[0], result.train_losses[-1]))
    assert last < first / 4
    assert result.held_out == {}
    assert result.curve == []
    assert result.prompts == 4


def test_given_answers_need_no_teacher_to_write_them(tiny, tmp_path):
    told = []
    samples = [Prompt(Sample(prompt.sample.messages, f"answer {n}"), where=str(n)) for n, prompt in enumerate(PROMPTS)]
    progress = lambda *what: told.append(what[0])  # noqa: E731
    result = run(tiny, tmp_path / "out", answers="given", prompts=samples, progress=progress)
    assert "answers" not in told
    assert not (tmp_path / "out" / "answers.jsonl").exists()
    assert result.answer_tokens == 6 * (len("answer n") + 1)


def test_an_adapter_can_be_rounded_to_half_its_size(tiny, tmp_path):
    whole = run(tiny, tmp_path / "whole", held_out=1, lora_r=16)
    half = run(tiny, tmp_path / "half", adapter_dtype="bfloat16", held_out=1, lora_r=16)
    for name, value in weights(half.model).items():
        assert torch.equal(value, value.bfloat16().float())
        torch.testing.assert_close(value, weights(whole.model)[name], atol=0, rtol=2**-8)
    assert half.adapter_bytes < 0.6 * whole.adapter_bytes
    loaded, _ = segattn.from_pretrained(tmp_path / "half")
    assert torch.equal(logits(loaded), logits(half.model))


def test_modules_to_adapt_can_be_named(tiny, tmp_path):
    result = run(tiny, tmp_path / "out", lora_targets="q_proj, v_proj", held_out=0)
    assert {name.split(".")[-4] for name in weights(result.model)} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("compare_sft", [False, True])
def test_a_run_that_was_cut_off_goes_on_as_if_nothing_had_happened(tiny, tmp_path, monkeypatch, caplog, compare_sft):
    options = {"steps": 4, "opening_steps": 3, "compare_sft": compare_sft}
    whole = run(tiny, tmp_path / "whole", **options)
    cut_class = SegmentSFTTrainer if compare_sft else DistillationTrainer
    training_step = SegmentSFTTrainer.training_step

    def press_ctrl_c(self, *args, **kwargs):
        if type(self) is cut_class and self.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(SegmentSFTTrainer, "training_step", press_ctrl_c)
    first = run(tiny, tmp_path / "cut", **options)
    assert first.interrupted
    assert first.steps == (4 if compare_sft else 2)
    assert "sft, segments" not in first.held_out
    assert "go on with --resume" in caplog.text
    monkeypatch.undo()
    asked = []
    monkeypatch.setattr(lessons_module, "generate_answers", lambda *given, **options: asked.append(given))
    second = run(tiny, tmp_path / "cut", resume=True, **options)
    assert not asked  # the answers are in their file
    assert not second.interrupted
    assert second.steps == 4
    for name, value in weights(whole.model).items():
        torch.testing.assert_close(weights(second.model)[name], value, atol=1e-6, rtol=1e-5)
    assert dict(second.train_losses) == pytest.approx(dict(whole.train_losses))
    for name, rows in whole.held_out.items():
        assert [one.kl for one in second.held_out[name]] == pytest.approx([one.kl for one in rows], abs=1e-5)


def test_a_finished_run_that_is_resumed_trains_no_further(tiny, tmp_path):
    """What is missing is made up for: here the comparison."""
    first = run(tiny, tmp_path / "out")
    again = run(tiny, tmp_path / "out", resume=True, compare_sft=True)
    assert again.steps == 3
    for name, value in weights(first.model).items():
        assert torch.equal(weights(again.model)[name], value)
    assert again.train_losses == first.train_losses
    assert "sft, segments" in again.held_out


def test_a_run_goes_on_only_with_its_own_settings(tiny, tmp_path):
    with pytest.raises(DataError, match="holds no run to go on with"):
        run(tiny, tmp_path / "out", resume=True)
    run(tiny, tmp_path / "out", held_out=0)
    with pytest.raises(DataError, match="holds a run of other settings"):
        run(tiny, tmp_path / "out", held_out=0, resume=True, lora_r=3)
    with pytest.raises(DataError, match=r"answers that were made otherwise \(max_new_tokens: 6 there, 5 now\)"):
        run(tiny, tmp_path / "out", held_out=0, max_new_tokens=5)


def test_the_teacher_is_asked_of_one_model_in_memory(tiny, tmp_path):
    """Students are the same object: measuring leaves adapter, mask and mode as they were."""
    result = run(tiny, tmp_path / "out", held_out=0)
    model, tokenizer = result.model, make_tokenizer()
    lessons = collect_lessons(PROMPTS, None, result.segmenter, settings(tiny, tmp_path)).train
    before = logits(model)
    answers = greedy_answers(model, tokenizer, [lesson.prompt for lesson in lessons], max_new_tokens=6, batch_size=4)
    assert len(answers) == len(lessons)
    torch.testing.assert_close(logits(model), before, atol=0, rtol=0)
    assert rows_of(lessons).num_rows == 0  # no answers yet
    with pytest.raises((ValueError, RuntimeError)):
        measure_agreement(
            model, tokenizer, lessons, answers, adapter=True, attention="segments", max_new_tokens=6, batch_size=4,
            progress=lambda *told: None,
        )  # fmt: skip
    torch.testing.assert_close(logits(model), before, atol=0, rtol=0)


def test_several_processes_are_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(segattn.UnsupportedModelError, match="runs in one process"):
        run(tiny, tmp_path / "out")


def save_tuned(base, folder):
    model = segattn.enable(make_model(), segattn.Segmenter.from_tokenizer(make_tokenizer()))
    segattn.save_pretrained(model, folder)
    make_tokenizer().save_pretrained(folder)


def save_adapter(base, folder):
    model = make_model()
    model.config._name_or_path = model.name_or_path = str(base)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)


def save_without_template(base, folder):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    save_checkpoint(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()


def save_mamba(base, folder):
    MambaForCausalLM(MambaConfig(vocab_size=258, hidden_size=16, num_hidden_layers=1)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def save_damaged(base, folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("save", "error", "message"),
    [
        (save_tuned, segattn.UnsupportedModelError, "was tuned with segments already"),
        (save_adapter, segattn.UnsupportedModelError, "is an adapter; expected a full model"),
        (save_without_template, segattn.TemplateError, "template"),
        (save_mamba, segattn.UnsupportedModelError, "MambaForCausalLM cannot honour segments"),
        (save_damaged, segattn.UnsupportedModelError, "cannot be loaded"),
    ],
)
def test_models_that_cannot_be_converted_are_refused(tiny, tmp_path, save, error, message):
    save(tiny, tmp_path / "model")
    with pytest.raises(error, match=message):
        run(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"answer_temperature": -1.0}, "answer_temperature is -1.0"),
        ({"opening_steps": 4}, "opening_steps is 4 and steps 3"),
        ({"max_length": 6}, "max_new_tokens is 6 and max_length 6"),
        ({"answers": "mine"}, "answers is 'mine'; expected one of teacher, given"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"max_length": 4000}, "holds 2048 tokens"),
        ({"prompts": []}, "0 prompts to learn on"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(tiny, tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        run(tiny, tmp_path / "out", **options)
