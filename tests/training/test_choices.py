"""Choices of a run: opening schedules, some layers, mixed training; against losses by hand."""

import json

import pytest
import torch

import segattn
from cli.tiny_chat import make_model
from segattn.training import ModelSettings, SFTSettings, TrainSettings, train
from training.conftest import make_samples
from training.test_trainer import BATCH, by_hand, dataset, losses, make_trainer


def record_biases(trainer):
    """The bias of every training batch."""
    seen = []
    compute_loss = trainer.compute_loss

    def record(model, *args, **kwargs):
        bias = model.get_base_model()._segattn_state.opening_bias
        seen.append(bias.detach().clone() if isinstance(bias, torch.Tensor) else bias)
        return compute_loss(model, *args, **kwargs)

    trainer.compute_loss = record
    trainer.train()
    return seen


def test_layers_open_one_by_one(tmp_path):
    trainer = make_trainer(tmp_path, ours={"opening_steps": 2, "opening_schedule": "bottom_up"}, max_steps=3)
    first, second, third = record_biases(trainer)
    assert first.tolist() == [-8.0, -8.0]
    assert second.tolist() == [0.0, -8.0]
    assert third is None


def test_the_loss_of_a_schedule_in_probability(tmp_path):
    """The first step's bias is that of every schedule: -8."""
    [loss, _] = losses(
        make_trainer(tmp_path, ours={"opening_steps": 2, "opening_schedule": "probability"}, max_steps=2)
    )
    assert loss == pytest.approx(by_hand(BATCH, "segments", -8.0), abs=1e-4)


def test_learned_openings_are_learned_and_resumed(tmp_path):
    ours = {"opening_steps": 4, "opening_schedule": "learned"}
    whole = make_trainer(tmp_path / "whole", ours=ours, max_steps=4)
    biases = record_biases(whole)
    assert biases[0].eq(-8).all()
    assert not biases[1][0].eq(-6).any(), "every head has moved"
    assert biases[1][1].eq(-6).all(), "but in the last layer, where nothing reads what prompt tokens see"
    assert (biases[1] + 6).abs().max() < 1

    cut = make_trainer(tmp_path / "cut", ours=ours, max_steps=4, save_strategy="steps", save_steps=2)
    cut.train()
    again = make_trainer(tmp_path / "cut", ours=ours, max_steps=4, save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert torch.equal(again.opening.factors, cut.opening.factors)
    assert again.opening.factors.abs().max() > 0.01
    # Nothing of them is in the model that is saved.
    assert not [name for name, _ in whole.model.named_parameters() if "factor" in name or "opening" in name]


def test_mixed_training_reads_some_samples_causally(tmp_path):
    _, rows = dataset()
    trainer = make_trainer(tmp_path, ours={"causal_share": 0.5}, eval_dataset=rows, max_steps=12)
    seen = []
    compute_loss = trainer.compute_loss

    def record(model, inputs, *args, **kwargs):
        if model.training:
            seen.extend((inputs["segment_ids"] >= 0).any(-1).tolist())
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = record
    trainer.train()
    assert 0.2 < sum(seen) / len(seen) < 0.8
    again = make_trainer(tmp_path / "again", ours={"causal_share": 0.5}, max_steps=12)
    first, seen = list(seen), []
    compute_loss = again.compute_loss
    again.compute_loss = record
    again.train()
    assert seen == first


def test_mixed_training_scores_held_out_data_under_both_masks(tmp_path):
    _, rows = dataset()
    trainer = make_trainer(
        tmp_path, ours={"causal_share": 0.5}, eval_dataset=rows.select(range(4)), per_device_eval_batch_size=2
    )
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(by_hand(BATCH, "segments"), abs=1e-4)
    assert metrics["eval_causal_loss"] == pytest.approx(by_hand(BATCH, "causal"), abs=1e-4)


def run(tiny, folder, **settings):
    return train(
        TrainSettings(**settings),
        SFTSettings(
            output_dir=str(folder), max_steps=2, per_device_train_batch_size=2, bf16=False, report_to="none",
            disable_tqdm=True,
        ),
        ModelSettings(model_name_or_path=tiny, lora_r=2),
        samples=make_samples(4),
    )  # fmt: skip


def test_a_run_with_segments_in_some_layers(tiny, tmp_path):
    result = run(tiny, tmp_path / "some", layers="1")
    assert json.loads((tmp_path / "some" / "segment_attention.json").read_text())["layers"] == [1]
    loaded, _ = segattn.from_pretrained(tmp_path / "some")
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    segments = torch.tensor([[0, 0, 0, 0, -1, -1]])
    with torch.no_grad():
        got, want = (
            loaded(input_ids=ids, segment_ids=segments).logits,
            result.model(input_ids=ids, segment_ids=segments).logits,
        )
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert segattn.modeling.probe(loaded).status == "exact"


@pytest.mark.parametrize("settings", [{"layers": "0"}, {"causal_share": 0.5}, {"opening_steps": 1}])
def test_causal_training_refuses_what_is_about_segments(tiny, tmp_path, settings):
    with pytest.raises(segattn.UnsupportedModelError, match="is about segments"):
        run(tiny, tmp_path, attention="causal", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "7"}, "some of the model's 2 layers"),
        ({"causal_share": 1.0}, "causal_share is 1.0"),
        ({"policy": "documents"}, "for texts with spans"),
        ({"opening_schedule": "sudden"}, "expected one of linear"),
    ],
)
def test_bad_choices_are_named_before_anything_is_trained(tiny, tmp_path, settings, message):
    with pytest.raises(segattn.SegmentAttentionError, match=message):
        run(tiny, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_layers_of_the_tiny_model():
    assert make_model().config.num_hidden_layers == 2
