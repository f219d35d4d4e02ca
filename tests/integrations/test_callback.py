"""Segments in a plain transformers Trainer that knows nothing of them, through the callback."""

import pytest
import torch
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

import segattn
from chatml import conversation
from cli.tiny_chat import make_model, make_tokenizer
from integrations.hand_loss import assert_under_segments, hand_losses, record_steps
from segattn.integrations.callback import SegmentAttentionCallback, check_rows

TOKENIZER = make_tokenizer()


def make_rows(count=4):
    rows = []
    for number in range(count):
        messages = [
            {"role": "user", "content": f"question {number} " + "x" * number},
            {"role": "assistant", "content": f"answer {number}"},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "content": "so"},
        ]
        ids, labels, _ = conversation(TOKENIZER, messages, learn="all")
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return rows


@pytest.fixture
def steps(monkeypatch):
    return record_steps(monkeypatch)


def make_trainer(folder, callback=None, rows=None, cls=Trainer, tokenizer=TOKENIZER, **options):
    options = {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-3, **options}
    arguments = TrainingArguments(str(folder), report_to="none", use_cpu=True, disable_tqdm=True, **options)
    return cls(
        model=make_model(),
        args=arguments,
        train_dataset=make_rows() if rows is None else rows,
        eval_dataset=make_rows(2) if options.get("eval_strategy") else None,
        data_collator=DataCollatorForSeq2Seq(TOKENIZER),
        processing_class=tokenizer,
        callbacks=[callback or SegmentAttentionCallback()],
    )


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("dense", {}),
        ("sliced", {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}),
        ("dense", {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}),
        ("sliced", {"eval_strategy": "steps", "eval_steps": 1}),
    ],
    ids=["dense", "sliced reentrant", "dense checkpoints", "sliced held-out"],
)
def test_every_step_trains_under_segments(tmp_path, steps, backend, options):
    trainer = make_trainer(tmp_path, SegmentAttentionCallback(backend=backend), **options)
    trainer.train()
    assert len(steps) == 3
    for step in steps:
        assert_under_segments(step)


def test_what_is_saved_says_how_it_must_be_run(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    trainer.save_model()
    model, _ = segattn.from_pretrained(tmp_path)
    ids, _, segments = conversation(TOKENIZER, [{"role": "user", "content": "so?"}], generation_prompt=True)
    trainer.model.eval()
    with torch.no_grad():
        loaded = model(input_ids=torch.tensor([ids])).logits
        given = trainer.model(input_ids=torch.tensor([ids]), segment_ids=torch.tensor([segments])).logits
    torch.testing.assert_close(loaded, given)


def test_rows_of_another_template_stop_before_the_first_step(tmp_path, steps):
    ids = TOKENIZER("### Instruction: say so\n### Response: so").input_ids
    trainer = make_trainer(tmp_path, rows=[*make_rows(3), {"input_ids": ids, "labels": ids}])
    with pytest.raises(segattn.SegmentAttentionError, match=r"row 3 .*no segment.*### Instruction"):
        trainer.train()
    assert steps == []


def test_held_out_rows_are_checked_too(tmp_path):
    trainer = make_trainer(tmp_path, eval_strategy="steps", eval_steps=1)
    trainer.eval_dataset = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}]
    with pytest.raises(segattn.SegmentAttentionError, match=r"row 0 .*no segment"):
        trainer.train()


def test_causal_on_purpose(tmp_path, steps):
    trainer = make_trainer(tmp_path, SegmentAttentionCallback(policy="causal"), max_steps=1)
    trainer.train()
    assert steps[0].loss == pytest.approx(hand_losses(steps[0])[1], rel=1e-4)


def test_a_loss_on_prompts_is_refused(tmp_path):
    rows = [{**row, "labels": row["input_ids"]} for row in make_rows()]
    with pytest.raises(segattn.LabelLeakError, match="row 0"):
        make_trainer(tmp_path, rows=rows).train()


@pytest.mark.parametrize("mask", [[1, 1], [1, 2]], ids=["ones", "numbered"])
def test_packed_rows_with_a_mask_are_refused(mask):
    first, second = make_rows(2)
    lengths = [len(first["input_ids"]), len(second["input_ids"])]
    row = {
        "input_ids": first["input_ids"] + second["input_ids"],
        "labels": first["labels"] + second["labels"],
        "position_ids": [*range(lengths[0]), *range(lengths[1])],
        "attention_mask": [mask[0]] * lengths[0] + [mask[1]] * lengths[1],
    }
    segmenter = segattn.Segmenter.from_tokenizer(TOKENIZER)
    with pytest.raises(segattn.UnsupportedModelError, match=r"row 1 .*several documents"):
        check_rows([first, row], segmenter)
    del row["attention_mask"]
    check_rows([first, row], segmenter)


def test_packed_rows_without_a_mask_are_separate_conversations(tmp_path, steps):
    first, second = make_rows(2)
    row = {
        "input_ids": first["input_ids"] + second["input_ids"],
        "labels": first["labels"] + second["labels"],
        "position_ids": [*range(len(first["input_ids"])), *range(len(second["input_ids"]))],
    }
    trainer = make_trainer(tmp_path, rows=[row], max_steps=1, per_device_train_batch_size=1)
    trainer.data_collator = lambda rows: {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
    trainer.train()
    assert_under_segments(steps[0])


def test_a_trainer_without_tokenizer_is_told_what_to_pass(tmp_path):
    with pytest.raises(segattn.SegmentAttentionError, match=r"NoneType.*SegmentAttentionCallback\(segmenter\)"):
        make_trainer(tmp_path, tokenizer=None)


def test_flash_attention_is_refused_when_the_trainer_is_made(tmp_path):
    class Flash(Trainer):
        def __init__(self, model, **options):
            model.config._attn_implementation_internal = "flash_attention_2"
            super().__init__(model=model, **options)

    with pytest.raises(segattn.UnsupportedModelError, match="flash_attention_2"):
        make_trainer(tmp_path, cls=Flash)
