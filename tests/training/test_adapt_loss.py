"""The loss of a conversion: its value against float64 under hand-built masks, its teacher, and whom it teaches."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

import segattn
from chatml import conversation
from cli.tiny_chat import make_model, make_tokenizer
from oracle import loop_mask
from segattn.training import SegmentCollator, SFTSettings
from segattn.training.distillation import DistillationTrainer, answer_logits, kl_divergence, teacher_logits
from training.conftest import make_samples

TOKENIZER = make_tokenizer()
SAMPLES = make_samples(6, learn="all")
BATCH = SAMPLES[:4]
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}


def rows_of(samples=SAMPLES):
    """Rows written by hand."""
    chats = [[*sample.messages, {"role": "assistant", "content": sample.answer}] for sample in samples]
    columns = zip(*(conversation(TOKENIZER, chat, "all") for chat in chats), strict=True)
    return Dataset.from_dict(dict(zip(("input_ids", "labels", "segment_ids"), columns, strict=True)))


def randomize(model, seed=1, scale=0.3):
    """Give the adapter weights that change something; fresh ones change nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora" in name:
                weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    return model


def make_trainer(tmp_path, opening_steps=0, temperature=1.0, network=None, **options):
    segmenter = segattn.Segmenter.from_tokenizer(TOKENIZER)
    rows = rows_of()
    arguments = {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "train_sampling_strategy": "sequential",
        "eval_strategy": "no",
        "eval_on_start": False,
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        **options,
    }
    trainer = DistillationTrainer(
        temperature=temperature,
        opening_steps=opening_steps,
        model=segattn.enable(network or make_model(), segmenter),
        args=SFTSettings(str(tmp_path), **arguments),
        data_collator=SegmentCollator(TOKENIZER.pad_token_id),
        train_dataset=rows,
        eval_dataset=rows if arguments["eval_strategy"] != "no" else None,
        processing_class=TOKENIZER,
        peft_config=LoraConfig(**LORA),
    )
    randomize(trainer.model)
    return trainer


def first_loss(trainer):
    trainer.train()
    return next(log["loss"] for log in trainer.state.log_history if "loss" in log)


def masked(segments, bias=0.0):
    """The additive mask of one row, from the double loop."""
    causal = loop_mask([[-1] * len(segments)])
    allowed = loop_mask([segments])
    mask = torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(allowed & ~causal, bias)
    return mask.masked_fill(~allowed, torch.finfo(torch.float64).min)


def by_hand(samples=BATCH, temperature=1.0, bias=0.0):
    """Sums of p (log p - log q) in float64, row by row, on models that know nothing of segments."""
    teacher = make_model().double()
    student = randomize(get_peft_model(make_model(), LoraConfig(**LORA))).double().eval()
    total, count = 0.0, 0
    for sample in samples:
        messages = [*sample.messages, {"role": "assistant", "content": sample.answer}]
        ids, labels, segments = conversation(TOKENIZER, messages, sample.learn)
        tokens = torch.tensor([ids])
        with torch.no_grad():
            teacher_logits = teacher(tokens, attention_mask=masked([-1] * len(ids))).logits[0]
            student_logits = student(input_ids=tokens, attention_mask=masked(segments, bias)).logits[0]
        for place, label in enumerate(labels):
            if label == -100:
                continue
            p = torch.softmax(teacher_logits[place - 1] / temperature, -1)
            q = torch.softmax(student_logits[place - 1] / temperature, -1)
            total += float((p * (p / q).log()).sum()) * temperature**2
            count += 1
    return total / count


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_equals_one_in_float64_under_hand_built_masks(tmp_path, temperature):
    want = by_hand(temperature=temperature)
    assert want > 0.05  # far above the tolerance
    assert first_loss(make_trainer(tmp_path, temperature=temperature)) == pytest.approx(want, abs=1e-4)


def test_gradient_accumulation_gives_the_loss_of_the_whole_batch(tmp_path):
    trainer = make_trainer(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert first_loss(trainer) == pytest.approx(by_hand(), abs=1e-4)


def test_the_student_begins_under_the_opening_bias_and_the_teacher_stays_causal(tmp_path):
    want = by_hand(bias=-8.0)
    assert abs(want - by_hand()) > 1e-3
    assert first_loss(make_trainer(tmp_path, opening_steps=1)) == pytest.approx(want, abs=1e-4)


def test_the_held_out_loss_is_the_mean_over_all_answer_tokens(tmp_path):
    trainer = make_trainer(tmp_path, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=4)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(by_hand(SAMPLES), abs=1e-4)


def test_joined_rows_have_the_loss_of_padded_ones(tmp_path):
    assert first_loss(make_trainer(tmp_path, padding_free=True)) == pytest.approx(by_hand(), abs=1e-4)


def batch_of(trainer):
    return next(iter(trainer.get_train_dataloader()))


def stock_logits(batch, network):
    """The causal logits before each label, from full ones of a stock model."""
    with torch.no_grad():
        logits = network(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[:, :-1][batch["labels"][:, 1:] != -100]


def test_the_teacher_is_the_causal_base_whatever_the_adapter_is(tmp_path):
    trainer = make_trainer(tmp_path)
    batch = batch_of(trainer)
    before = teacher_logits(trainer.model, batch)
    torch.testing.assert_close(before, stock_logits(batch, make_model()), atol=1e-5, rtol=0)
    student = answer_logits(trainer.model, batch)
    randomize(trainer.model, seed=2, scale=1.0)
    assert torch.equal(teacher_logits(trainer.model, batch), before)
    assert not torch.allclose(answer_logits(trainer.model, batch), student, atol=0.1)
    batch["segment_ids"] = torch.full_like(batch["segment_ids"], -1)
    assert torch.equal(teacher_logits(trainer.model, batch), before)


def test_the_teacher_has_no_dropout_and_leaves_the_student_in_its_mode(tmp_path):
    network = make_model()
    for layer in network.model.layers:
        layer.self_attn.attention_dropout = 0.5
    trainer = make_trainer(tmp_path, network=network)
    trainer.model.train()
    batch = batch_of(trainer)
    torch.testing.assert_close(
        teacher_logits(trainer.model, batch), stock_logits(batch, make_model()), atol=1e-5, rtol=0
    )
    assert trainer.model.training
    assert all(weight.requires_grad for name, weight in trainer.model.named_parameters() if "lora" in name)
    first, second = (answer_logits(trainer.model, batch) for _ in range(2))
    assert not torch.equal(first, second)  # the student has it


def test_gradients_reach_the_adapter_and_nothing_else(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch_of(trainer)).backward()
    for name, weight in trainer.model.named_parameters():
        if "lora" in name:
            assert weight.grad.abs().sum() > 0, name
        else:
            assert weight.grad is None, name


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_only_answer_positions_are_put_onto_the_vocabulary(family):
    """The model's own head and soft cap do it, with the logits of a whole pass."""
    network = make_model(family=family)
    if family == "gemma":
        network.config.final_logit_softcapping = 2.0
    model = segattn.enable(network)
    batch = SegmentCollator(0)(list(rows_of()))
    whole = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad():
        want = model(**whole).logits[:, :-1][batch["labels"][:, 1:] != -100]
        seen = []
        hook = model.lm_head.register_forward_hook(lambda module, given, output: seen.append(given[0].shape))
        got = answer_logits(model, batch)
        hook.remove()
        again = model(**whole).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert seen == [(1, len(want), 32)]
    assert again.shape[:2] == batch["input_ids"].shape  # no hook is left behind
    if family == "gemma":
        assert got.abs().max() <= 2.0


def test_a_head_that_is_called_otherwise_is_refused():
    model = segattn.enable(make_model())
    batch = SegmentCollator(0)(list(rows_of(BATCH)))
    cut = {"logits_to_keep": 3}
    model.register_forward_pre_hook(lambda module, given, named: (given, {**named, **cut}), with_kwargs=True)
    with pytest.raises(segattn.UnsupportedModelError, match="its output layer gets"):
        answer_logits(model, batch)
    assert not model.lm_head._forward_pre_hooks
    with pytest.raises(segattn.UnsupportedModelError, match="no output embeddings"):
        answer_logits(torch.nn.Identity(), batch)


def test_the_divergence_is_zero_only_between_equals_and_never_negative():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 50, 7, generator=generator) * 5
    assert (kl_divergence(student, teacher) > 0).all()
    assert kl_divergence(teacher, teacher).abs().max() < 1e-6
    assert kl_divergence(teacher + 3.0, teacher).abs().max() < 1e-5  # logits have no zero point


def test_what_lacks_a_teacher_or_a_column_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    batch = batch_of(trainer)
    for name in ("segment_ids", "labels"):
        with pytest.raises(segattn.SegmentError, match=f"but no {name}"):
            trainer.compute_loss(trainer.model, {key: value for key, value in batch.items() if key != name})
    with pytest.raises(segattn.UnsupportedModelError, match="no adapter, so that there is no teacher"):
        DistillationTrainer(
            model=segattn.enable(make_model()),
            args=SFTSettings(str(tmp_path), use_cpu=True, bf16=False, eval_strategy="no"),
            train_dataset=trainer.train_dataset,
            data_collator=SegmentCollator(0),
            processing_class=TOKENIZER,
        )
