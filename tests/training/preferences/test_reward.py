"""Reward models under segments: scores, losses and gradients are those of a stock model with masks made by hand."""

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import LlamaForSequenceClassification
from trl import RewardConfig

import segattn
from cli.tiny_chat import make_model
from oracle import loop_mask
from segattn.data import DataError
from segattn.training import SegmentRewardTrainer
from training.preferences.pairs import SEGMENTER, TOKENIZER, make_pairs, written_out

ROWS = make_pairs(4)


def classifier(seed=0):
    config = make_model().config
    config.num_labels = 1
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(config).eval()


def make_trainer(tmp_path, model, rows=ROWS, **config):
    arguments = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        **config,
    }
    return SegmentRewardTrainer(
        model=model, args=RewardConfig(str(tmp_path), **arguments), train_dataset=Dataset.from_list(rows)
    )


def score(model, prompt, answer, rule="segments"):
    """The number that a stock classifier gives a conversation: its head on the last token's state."""
    ids, segments, _ = written_out(prompt, answer)
    allowed = loop_mask([segments if rule == "segments" else [-1] * len(ids)])
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return model.score(model.model(torch.tensor([ids]), attention_mask=mask).last_hidden_state[0, -1])


def loss_by_hand(model, rule="segments"):
    margins = [score(model, row["prompt"], row["chosen"], rule) - score(model, row["prompt"], row["rejected"], rule)
               for row in ROWS]  # fmt: skip
    return -logsigmoid(torch.cat(margins)).mean()


def test_loss_and_gradients_equal_a_hand_computation(tmp_path):
    model, stock = segattn.enable(classifier(), SEGMENTER), classifier()
    trainer = make_trainer(tmp_path, model)
    loss = trainer.compute_loss(model, next(iter(trainer.get_train_dataloader())))
    loss.backward()
    want = loss_by_hand(stock)
    want.backward()
    assert float(loss.detach()) == pytest.approx(float(want.detach()), abs=1e-5)
    with torch.no_grad():
        assert abs(float(want.detach()) - float(loss_by_hand(stock, "causal"))) > 1e-2
    gradients = dict(model.named_parameters())
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, atol=1e-4, rtol=1e-3, msg=name)


def test_a_tuned_judge_is_saved_with_its_segmentation_and_judges_under_it(tmp_path):
    model = segattn.enable(classifier(), SEGMENTER)
    trainer = make_trainer(tmp_path, model)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[1] < losses[0]
    trainer.save_model(str(tmp_path / "judge"))
    loaded = LlamaForSequenceClassification.from_pretrained(tmp_path / "judge")
    recorded = loaded.config.segment_attention["segmenter"]
    stock = LlamaForSequenceClassification.from_pretrained(tmp_path / "judge")
    segattn.enable(loaded, segattn.Segmenter.from_dict(recorded, tokenizer=TOKENIZER))
    ids, _, _ = written_out(ROWS[1]["prompt"], ROWS[1]["chosen"])
    with torch.no_grad():
        got = loaded(input_ids=torch.tensor([ids])).logits[0]  # as GRPO calls it, by its tokens alone
        torch.testing.assert_close(got, score(stock, ROWS[1]["prompt"], ROWS[1]["chosen"]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "rows", "config", "error", "message"),
    [
        (classifier, ROWS, {}, segattn.UnsupportedModelError, "not enabled"),
        (None, [{"chosen": "yes", "rejected": "no"}], {}, DataError, "shows no segments"),
        (None, ROWS, {"max_length": 60}, DataError, "max_length is 60; raise max_length"),
        (None, ROWS, {"chat_template_path": "x"}, segattn.SegmentError, "chat_template_path"),
        (None, ROWS, {"use_liger_kernel": True}, segattn.UnsupportedModelError, "use_liger_kernel"),
    ],
)
def test_refused(tmp_path, model, rows, config, error, message):
    model = model() if model else segattn.enable(classifier(), SEGMENTER)
    with pytest.raises(error, match=message):
        make_trainer(tmp_path, model, rows, **config)


def test_rows_without_segment_ids_are_refused(tmp_path):
    trainer = make_trainer(tmp_path, segattn.enable(classifier(), SEGMENTER))
    batch = next(iter(trainer.get_train_dataloader()))
    with pytest.raises(segattn.SegmentError, match="no segment_ids"):
        trainer.compute_loss(trainer.model, {name: value for name, value in batch.items() if name != "segment_ids"})
    rows = [{name: value for name, value in row.items() if "segment" not in name} for row in trainer.train_dataset]
    with pytest.raises(segattn.SegmentError, match="a row has no segment ids"):
        trainer.data_collator(rows)
