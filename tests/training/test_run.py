"""A whole run: what it saves, what it remembers, how it resumes and how it ends early."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

import segattn
from chatml import conversation
from cli.tiny_chat import make_model, make_tokenizer
from segattn.data import DataError, Encoder, Sample, SpanText
from segattn.evaluation import answer_loss
from segattn.training import ModelSettings, SFTSettings, TrainSettings, train
from segattn.training.trainer import SegmentSFTTrainer
from templates.test_restricted import pieces, row
from training.conftest import make_samples

SAMPLES = make_samples(7)
HELD_OUT = make_samples(10)[7:]


def sft(folder, **options):
    arguments = {
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 11,
        **options,
    }
    return SFTSettings(str(folder), **arguments)


def lora(tiny, **options):
    return ModelSettings(model_name_or_path=tiny, **{"lora_r": 4, "lora_dropout": 0.1, **options})


def run(tiny, folder, settings=None, held_out=(), model=None, **options):
    return train(
        settings or TrainSettings(), sft(folder, **options), model or lora(tiny), samples=SAMPLES, held_out=held_out
    )


def logits(model, sample=SAMPLES[0], **extra):
    messages = [*sample.messages, {"role": "assistant", "content": sample.answer}]
    ids = torch.tensor([conversation(make_tokenizer(), messages)[0]])
    with torch.no_grad():
        return model(input_ids=ids, **extra).logits


@pytest.mark.parametrize(("attention", "policy"), [("segments", "turns"), ("segments", "prefix"), ("causal", "causal")])
def test_a_saved_run_comes_back_with_the_same_logits(tiny, tmp_path, attention, policy):
    settings = TrainSettings(attention=attention, policy="prefix" if policy == "prefix" else "turns")
    result = run(tiny, tmp_path / "out", settings)
    loaded, tokenizer = segattn.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == make_tokenizer().chat_template
    # No segment_ids: the recorded segmenter derives them, all causal for the causal arm.
    torch.testing.assert_close(logits(loaded), logits(result.model), atol=1e-6, rtol=0)
    with segattn.causal(loaded):
        causal = logits(loaded)
    assert torch.equal(logits(loaded), causal) == (attention == "causal")
    assert not torch.allclose(causal, logits(make_model()), atol=1e-2)  # it did learn something
    recorded = json.loads((tmp_path / "out" / "segment_attention.json").read_text())
    assert recorded["segmenter"]["policy"] == policy == result.segmenter.policy


def test_segments_of_some_roles_in_pieces_are_learned_and_come_back(tiny, tmp_path, monkeypatch):
    """What a step is given equals the rows written by hand; the checkpoint records the choice."""
    chats = [replace(one, messages=({"role": "system", "content": "Add."}, *one.messages)) for one in SAMPLES]
    given = []
    step = SegmentSFTTrainer.training_step

    def watched(trainer, model, inputs, *args, **kwargs):
        given.extend(zip(inputs["input_ids"].tolist(), inputs["segment_ids"].tolist(), strict=True))
        return step(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SegmentSFTTrainer, "training_step", watched)
    settings = TrainSettings(causal_roles=["system"], max_segment_length=9)
    train(settings, sft(tmp_path / "out"), lora(tiny), samples=chats)
    want = {}
    for chat in chats:
        ids, segments = row(chat.conversation, ["system"], generation_prompt=False)
        want[tuple(ids)] = pieces(segments, 9)
    assert given
    for ids, segments in given:
        real = next(row for row in want if tuple(ids[: len(row)]) == row)  # padding follows
        assert segments == want[real] + [-1] * (len(ids) - len(real))
        assert max(segments) >= 1
    loaded, _ = segattn.from_pretrained(tmp_path / "out")
    ids = torch.tensor([given[0][0]])
    assert segattn.modeling.segmenter_of(loaded).segment_ids(ids)[0].tolist() == given[0][1]


def test_callbacks_of_the_caller_are_called(tiny, tmp_path):
    class Counting(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **kwargs):
            self.steps += 1

    counting = Counting()
    train(TrainSettings(), sft(tmp_path / "out"), lora(tiny), samples=SAMPLES, callbacks=[counting])
    assert counting.steps == 3


def test_all_weights_can_be_trained(tiny, tmp_path):
    result = run(tiny, tmp_path / "out", model=lora(tiny, use_peft=False))
    loaded, _ = segattn.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(loaded), logits(result.model), atol=1e-6, rtol=0)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["segment_attention"]["segmenter"]


def test_the_causal_arm_is_plain_trl(tiny, tmp_path):
    """Step by step the losses of SFTTrainer without segattn, on rows written by hand."""
    result = run(tiny, tmp_path / "ours", TrainSettings(attention="causal"), train_sampling_strategy="random")
    tokenizer = make_tokenizer()
    rows = [conversation(tokenizer, [*s.messages, {"role": "assistant", "content": s.answer}]) for s in SAMPLES]
    plain = SFTTrainer(
        model=tiny,
        args=SFTConfig(
            str(tmp_path / "plain"),
            max_steps=3,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            bf16=False,
            use_cpu=True,
            disable_tqdm=True,
            seed=11,
            gradient_checkpointing=None,
            model_init_kwargs={"dtype": "float32"},
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_dict({"input_ids": [row[0] for row in rows], "labels": [row[1] for row in rows]}),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=4, lora_alpha=64, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    plain.train()
    want = [log["loss"] for log in plain.state.log_history if "loss" in log]
    assert [loss for _, loss in result.train_losses] == pytest.approx(want, abs=1e-4)
    assert len(want) == 3


def test_both_arms_see_the_same_samples_in_the_same_order(tiny, tmp_path, monkeypatch):
    seen = []
    compute_loss = SegmentSFTTrainer.compute_loss

    def record(self, model, inputs, *args, **kwargs):
        seen[-1].append((inputs["input_ids"].tolist(), inputs["labels"].tolist()))
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SegmentSFTTrainer, "compute_loss", record)
    for attention in ("segments", "causal"):
        seen.append([])
        run(tiny, tmp_path / attention, TrainSettings(attention=attention))
    assert len(seen[0]) == 3
    assert seen[0] == seen[1]


def test_the_curve_is_the_held_out_answer_loss_from_step_0_on(tiny, tmp_path):
    result = run(tiny, tmp_path / "out", held_out=HELD_OUT, eval_strategy="steps", eval_steps=2, max_steps=4)
    assert [point.step for point in result.curve] == [0, 2, 4]
    assert [point.opening_loss for point in result.curve] == [None] * 3
    segmenter = result.segmenter
    before = answer_loss(segattn.enable(make_model(), segmenter), segmenter, HELD_OUT)
    after = answer_loss(result.model, segmenter, HELD_OUT)
    assert result.curve[0].loss == pytest.approx(before.mean, abs=1e-4)
    assert result.curve[-1].loss == pytest.approx(after.mean, abs=1e-4)
    assert abs(before.mean - after.mean) > 0.1
    assert json.loads((tmp_path / "out" / "training_result.json").read_text())["result"] == json.loads(
        json.dumps(result.to_dict())
    )


def test_opening_is_scored_both_ways_and_over_at_the_end(tiny, tmp_path):
    result = run(tiny, tmp_path / "out", TrainSettings(opening_steps=2), HELD_OUT, eval_strategy="steps", eval_steps=1)
    assert [point.opening_loss is None for point in result.curve] == [False, False, True, True]
    assert result.curve[0].opening_loss != pytest.approx(result.curve[0].loss, abs=1e-3)
    after = answer_loss(result.model, result.segmenter, HELD_OUT)
    assert result.curve[-1].loss == pytest.approx(after.mean, abs=1e-4)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items() if "lora" in name}


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tiny, tmp_path, monkeypatch):
    whole = run(tiny, tmp_path / "whole", TrainSettings(opening_steps=3), max_steps=4)
    training_step = SegmentSFTTrainer.training_step

    def press_ctrl_c(self, *args, **kwargs):
        if self.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(SegmentSFTTrainer, "training_step", press_ctrl_c)
    settings = TrainSettings(opening_steps=3)
    first = run(tiny, tmp_path / "cut", settings, max_steps=4)
    assert first.interrupted
    assert first.steps == 2
    assert (tmp_path / "cut" / "adapter_model.safetensors").is_file()
    monkeypatch.undo()
    second = run(tiny, tmp_path / "cut", settings, max_steps=4, resume_from_checkpoint="last")
    assert not second.interrupted
    assert second.steps == 4
    assert dict(second.train_losses) == pytest.approx(dict(whole.train_losses))
    for name, value in weights(whole.model).items():
        torch.testing.assert_close(weights(second.model)[name], value, atol=1e-6, rtol=1e-5)


def test_a_run_that_breaks_leaves_a_checkpoint(tiny, tmp_path, monkeypatch):
    training_step = SegmentSFTTrainer.training_step

    def explode(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise RuntimeError("out of memory")
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(SegmentSFTTrainer, "training_step", explode)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(tiny, tmp_path / "out")
    assert (tmp_path / "out" / "checkpoint-2" / "segment_attention.json").is_file()
    monkeypatch.undo()
    assert run(tiny, tmp_path / "out", resume_from_checkpoint="true").steps == 3


def test_long_samples_are_refused_left_out_or_cut(tiny, tmp_path, caplog):
    long = Sample(({"role": "user", "content": "x" * 300},), "a", id="long one")
    samples = [*SAMPLES[:3], long]
    arguments = {"samples": samples, "held_out": []}
    with pytest.raises(DataError, match=r"1 of 4 samples are longer than max_length 200 .*first data long one"):
        train(TrainSettings(), sft(tmp_path / "a", max_length=200), lora(tiny), **arguments)
    result = train(TrainSettings(too_long="drop"), sft(tmp_path / "b", max_length=200), lora(tiny), **arguments)
    assert (result.samples, result.dropped) == (3, 1)
    assert "left out 1 of 4 training samples" in caplog.text
    for how in ("cut_left", "cut_longest_segment"):
        sft_settings = sft(tmp_path / how, max_length=200, packing=how == "cut_left")
        result = train(TrainSettings(too_long=how), sft_settings, lora(tiny), **arguments)
        assert (result.samples, result.dropped, result.cut) == (4, 0, 1)
        assert result.removed_tokens == len(conversation(make_tokenizer(), long.conversation)[0]) - 200
        assert f"cut 1 of 4 training samples to 200 tokens ({result.removed_tokens} tokens removed)" in caplog.text


TEXTS = [SpanText(f"q {n} {'x' * (n % 4)}: ?yes {n}", ((0, 4), (5, 7 + n % 4)), id=str(n)) for n in range(6)]


@pytest.mark.parametrize("packing", [False, True])
def test_texts_with_spans_need_no_template_and_record_no_segmenter(tmp_path, packing):
    make_model().save_pretrained(tmp_path / "base")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "base")
    ids, segments = torch.tensor([[65, 66, 67, 68]]), torch.tensor([[0, 0, 0, -1]])
    for attention in ("segments", "causal"):
        folder = tmp_path / attention
        options = {"packing": packing, "max_length": 64}
        settings = TrainSettings(attention=attention)
        held_out = {"samples": TEXTS, "held_out": TEXTS[:2]}
        result = train(settings, sft(folder, **options), lora(str(tmp_path / "base")), **held_out)
        assert len(result.curve) == (4 if packing else 2)  # packed, an epoch is a single step
        loaded, _ = segattn.from_pretrained(folder)
        with torch.no_grad():
            if attention == "causal":
                with segattn.causal(loaded):
                    causal = loaded(input_ids=ids).logits
                assert torch.equal(loaded(input_ids=ids).logits, causal)
                continue
            want = result.model(input_ids=ids, segment_ids=segments).logits
            torch.testing.assert_close(loaded(input_ids=ids, segment_ids=segments).logits, want, atol=1e-6, rtol=0)
            with pytest.raises(segattn.SegmentError, match="segment_ids is missing"):
                loaded(input_ids=ids)


def test_a_loss_span_inside_of_a_span_is_a_leak(tiny, tmp_path):
    leaking = SpanText("question? yes", ((0, 13),), ((10, 13),), id="leaking")
    with pytest.raises(segattn.LabelLeakError, match=r"sample 'leaking' of 'data', token 10 'y': .*inside segment 0"):
        train(TrainSettings(), sft(tmp_path), lora(tiny), samples=[*TEXTS, leaking])


def test_a_label_inside_a_segment_stops_the_run_before_its_first_step(tiny, tmp_path, monkeypatch):
    encode = Encoder.encode

    def leak(self, sample):
        row = encode(self, sample)
        row.labels[5] = row.input_ids[5]
        return row

    monkeypatch.setattr(Encoder, "encode", leak)
    with pytest.raises(segattn.LabelLeakError, match=r"sample '0' of 'data', token 5 .*: row 0, position 5"):
        run(tiny, tmp_path / "out")


def write(path, samples):
    rows = [{"messages": [*s.messages, {"role": "assistant", "content": s.answer}]} for s in samples]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_held_out_data_is_the_dev_split_unless_named(tiny, tmp_path):
    write(tmp_path / "data" / "train.jsonl", SAMPLES)
    write(tmp_path / "data" / "dev.jsonl", HELD_OUT)
    write(tmp_path / "more.jsonl", SAMPLES[:2])
    folder, file = str(tmp_path / "data"), str(tmp_path / "more.jsonl")
    steps = {"max_steps": 1}
    named = train(TrainSettings(data=folder, held_out=file), sft(tmp_path / "a", **steps), lora(tiny))
    own = train(TrainSettings(data=folder), sft(tmp_path / "b", **steps), lora(tiny))
    none = train(TrainSettings(data=file), sft(tmp_path / "c", **steps), lora(tiny))
    off = train(TrainSettings(data=folder, held_out_samples=0), sft(tmp_path / "d", **steps), lora(tiny))
    assert [len(result.curve) for result in (named, own, none, off)] == [2, 2, 0, 0]
    assert own.curve[0].loss != named.curve[0].loss
    with pytest.raises(DataError, match="scores held-out data, and there is none"):
        train(TrainSettings(data=file), sft(tmp_path / "e", eval_strategy="steps", eval_steps=1), lora(tiny))


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({"packing": True, "packing_strategy": "wrapped"}, {}, "--packing_strategy wrapped cannot be used"),
        ({"eval_packing": True, "packing_strategy": "bfd_split"}, {}, "--packing_strategy bfd_split cannot be used"),
        ({"packing": True, "max_length": None}, {}, "give --max_length a number"),
        ({"completion_only_loss": False}, {}, "leak inside segments"),
        ({}, {"opening_steps": -1}, "opening_steps is -1"),
        ({}, {"opening_steps": 2, "attention": "causal"}, "attention is causal"),
        ({}, {"max_segment_length": 9, "attention": "causal"}, "max_segment_length is about segments"),
    ],
)
def test_options_that_drop_the_mask_are_refused(tiny, tmp_path, options, settings, message):
    with pytest.raises(segattn.UnsupportedModelError, match=message):
        run(tiny, tmp_path, TrainSettings(**settings), **options)


def test_models_that_cannot_be_tuned_are_refused(tiny, tmp_path):
    with pytest.raises(segattn.UnsupportedModelError, match="there is no model"):
        run(tiny, tmp_path, model=lora(None))
    run(tiny, tmp_path / "adapter", max_steps=1)
    with pytest.raises(segattn.UnsupportedModelError, match="is an adapter"):
        run(tiny, tmp_path, model=lora(str(tmp_path / "adapter")))
    with pytest.raises(segattn.UnsupportedModelError, match="--attn_implementation flash_attention_2"):
        run(tiny, tmp_path, model=lora(tiny, attn_implementation="flash_attention_2"))
