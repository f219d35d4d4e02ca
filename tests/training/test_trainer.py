"""Training really sees the segment mask: its losses equal those of a stock model with masks built by hand."""

from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn.functional import cross_entropy

import segattn
from chatml import conversation
from cli.tiny_chat import make_model, make_tokenizer
from oracle import loop_mask
from segattn.training import SegmentCollator, SegmentSFTTrainer, SFTSettings
from segattn.training.dataset import encode_dataset
from training.conftest import make_samples

TOKENIZER = make_tokenizer()
SAMPLES = make_samples(6, learn="all")
# Four samples a step: the first batch of a run that does not shuffle.
BATCH = SAMPLES[:4]


def dataset(policy="turns"):
    segmenter = segattn.Segmenter.from_tokenizer(TOKENIZER, policy=policy)
    return segmenter, encode_dataset(SAMPLES, segmenter, max_length=None, too_long="error")[0]


def make_trainer(tmp_path, policy="turns", model=None, eval_dataset=None, ours=None, **options):
    segmenter, rows = dataset(policy)
    arguments = {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
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
    return SegmentSFTTrainer(
        **(ours or {}),
        model=model or segattn.enable(make_model(), segmenter),
        args=SFTSettings(str(tmp_path), **arguments),
        data_collator=SegmentCollator(TOKENIZER.pad_token_id),
        train_dataset=rows,
        eval_dataset=eval_dataset,
        processing_class=TOKENIZER,
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )


def losses(trainer):
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def by_hand(samples, rule, bias=0.0, model=None):
    """The mean answer loss of a stock model, row by row, under a mask made by a double loop over the keys."""
    model = model or make_model()
    total, count = torch.zeros(()), 0
    for sample in samples:
        messages = [*sample.messages, {"role": "assistant", "content": sample.answer}]
        ids, labels, segments = (torch.tensor(row) for row in conversation(TOKENIZER, messages, sample.learn))
        causal = loop_mask([[-1] * len(ids)])
        allowed = loop_mask([segments.tolist()]) if rule == "segments" else causal
        mask = torch.zeros(allowed.shape).masked_fill(allowed & ~causal, bias)
        mask = mask.masked_fill(~allowed, torch.finfo(torch.float32).min)
        with torch.no_grad():
            logits = model(ids[None], attention_mask=mask).logits[0]
        total += cross_entropy(logits[:-1], labels[1:], reduction="sum", ignore_index=-100)
        count += int((labels[1:] != -100).sum())
    return float(total / count)


@pytest.mark.parametrize(("policy", "rule"), [("turns", "segments"), ("causal", "causal")])
def test_the_first_loss_equals_a_hand_built_one(tmp_path, policy, rule):
    [loss] = losses(make_trainer(tmp_path, policy))
    assert loss == pytest.approx(by_hand(BATCH, rule), abs=1e-4)


def test_the_two_rules_differ_by_more_than_the_tolerance():
    assert abs(by_hand(BATCH, "segments") - by_hand(BATCH, "causal")) > 1e-2


def test_gradient_accumulation_gives_the_loss_of_the_whole_batch(tmp_path):
    [loss] = losses(make_trainer(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4))
    assert loss == pytest.approx(by_hand(BATCH, "segments"), abs=1e-4)


def test_a_prefix_policy_joins_system_and_user():
    """The loss under "prefix" is that of one segment over both messages, so it differs from "turns"."""
    from segattn.data import Encoder, Sample

    sample = Sample(({"role": "system", "content": "s"}, {"role": "user", "content": "u"}), "a")
    prefix = Encoder(segattn.Segmenter.from_tokenizer(TOKENIZER, policy="prefix")).encode(sample)
    turns = Encoder(segattn.Segmenter.from_tokenizer(TOKENIZER)).encode(sample)
    assert prefix.labels == turns.labels
    assert prefix.segment_ids == [min(number, 0) for number in turns.segment_ids]


def test_the_opening_bias_rises_linearly_and_then_is_gone(tmp_path):
    """Step by step: the loss equals one under an additive mask, with the weights of that step."""
    trainer = make_trainer(tmp_path, ours={"opening_steps": 4}, max_steps=6)
    seen, stock = [], make_model()
    compute_loss = trainer.compute_loss

    def record(model, inputs, *args, **kwargs):
        loss = compute_loss(model, inputs, *args, **kwargs)
        tuned = {name: value for name, value in model.state_dict().items() if "lora" in name}
        seen.append((float(loss.detach()), {name: value.clone() for name, value in tuned.items()}))
        return loss

    trainer.compute_loss = record
    trainer.train()
    order = [SAMPLES[:4], SAMPLES[4:]] * 3
    biases = [-8.0, -6.0, -4.0, -2.0, 0.0, 0.0]
    for (loss, adapter), samples, bias in zip(seen, order, biases, strict=True):
        merged = merge(stock, adapter)
        assert loss == pytest.approx(by_hand(samples, "segments", bias, merged), abs=1e-4), bias
    distinct = sorted(by_hand(BATCH, "segments", bias) for bias in set(biases))
    assert min(b - a for a, b in pairwise(distinct)) > 1e-3  # so another bias would have shown


def merge(model, adapter):
    """A stock model whose weights are W + (alpha / r) B A, with PEFT's default alpha of 8."""
    merged = make_model()
    weights = dict(merged.named_parameters())
    with torch.no_grad():
        for name, down in adapter.items():
            if "lora_A" in name:
                up = adapter[name.replace("lora_A", "lora_B")]
                key = name.split("base_model.model.")[1].replace(".lora_A.default.weight", ".weight")
                weights[key].add_(8 / 2 * up @ down)
    return merged


def test_segment_ids_reach_every_batch(tmp_path):
    trainer = make_trainer(tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "labels", "segment_ids"}
    want = [conversation(TOKENIZER, [*s.messages, {"role": "assistant", "content": s.answer}])[2] for s in BATCH]
    for row, segments in zip(batch["segment_ids"].tolist(), want, strict=True):
        assert row == segments + [-1] * (len(row) - len(segments))


def test_a_batch_without_segment_ids_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train_dataset = trainer.train_dataset.remove_columns("segment_ids")
    trainer.data_collator = lambda rows: SegmentCollator(0)([{**row, "segment_ids": row["labels"]} for row in rows])
    batch = {name: value for name, value in next(iter(trainer.get_train_dataloader())).items() if name != "segment_ids"}
    with pytest.raises(segattn.SegmentError, match="no segment_ids"):
        trainer.compute_loss(trainer.model, batch)


def test_held_out_loss_is_the_mean_over_tokens(tmp_path):
    """Batches of one answer token more or less: a mean over batches would be another number."""
    _, rows = dataset()
    trainer = make_trainer(tmp_path, eval_dataset=rows, eval_strategy="steps", per_device_eval_batch_size=4)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(by_hand(SAMPLES, "segments"), abs=1e-4)
    batches = (by_hand(SAMPLES[:4], "segments") + by_hand(SAMPLES[4:], "segments")) / 2
    assert abs(metrics["eval_loss"] - batches) > 1e-3
    assert trainer.state.log_history[-1]["eval_loss"] == metrics["eval_loss"]


def test_held_out_data_is_scored_under_the_plain_rule_and_the_bias(tmp_path):
    _, rows = dataset()
    trainer = make_trainer(tmp_path, ours={"opening_steps": 4}, max_steps=4, eval_dataset=rows, eval_strategy="steps")
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(by_hand(SAMPLES, "segments"), abs=1e-4)
    assert metrics["eval_opening_loss"] == pytest.approx(by_hand(SAMPLES, "segments", -8.0), abs=1e-4)


def test_the_answer_head_gives_what_trls_head_gives(tmp_path):
    trainer = make_trainer(tmp_path)
    inner = trainer.model.get_base_model()
    own = inner.forward
    trls = next(
        cell.cell_contents for cell in own.__func__.__closure__ if cell.cell_contents.__class__.__name__ == "method"
    )
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        got, want = own(**batch, fused_lm_head=True), trls(**batch, fused_lm_head=True)
    for name in ("loss", "log_probs", "entropy", "is_top1", "label_mask"):
        assert getattr(got, name).dtype == getattr(want, name).dtype  # they are gathered with those of other processes
        torch.testing.assert_close(getattr(got, name).float(), getattr(want, name).float(), atol=1e-5, rtol=1e-5)


def test_a_model_that_is_not_enabled_is_refused(tmp_path):
    with pytest.raises(segattn.UnsupportedModelError, match="not enabled"):
        make_trainer(tmp_path, model=make_model())


def test_an_opening_longer_than_the_training_is_refused(tmp_path):
    with pytest.raises(segattn.UnsupportedModelError, match="opening_steps is 3, but training ends after 2"):
        make_trainer(tmp_path, ours={"opening_steps": 3}, max_steps=2).train()


def test_several_held_out_sets_are_refused(tmp_path):
    rows = Dataset.from_dict({"input_ids": [[1]]})
    with pytest.raises(segattn.UnsupportedModelError, match="eval_dataset is a dict"):
        make_trainer(tmp_path, eval_dataset={"a": rows})
