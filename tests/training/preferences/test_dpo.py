"""DPO under segments: losses and gradients are those of the formula on a stock model with masks made by hand."""

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

import segattn
from chatml import conversation
from cli.tiny_chat import make_model
from segattn.data import DataError
from segattn.training import SegmentDPOTrainer
from training.preferences.pairs import (
    SEGMENTER,
    TOKENIZER,
    answer_log_prob,
    assistant,
    dpo_loss,
    enabled,
    make_pairs,
    segments_by_markers,
    user,
    written_out,
)
from training.test_trainer import merge

ROWS = make_pairs(4)
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def settings(tmp_path, **options):
    arguments = {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        **options,
    }
    return DPOConfig(str(tmp_path), **arguments)


def make_trainer(tmp_path, rows=ROWS, *, model=None, ref_model=None, config=None, **options):
    return SegmentDPOTrainer(
        model=model or enabled(),
        ref_model=ref_model,
        args=settings(tmp_path, **(config or {})),
        train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
        **options,
    )


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def log_probs_by_hand(model, name, rule="segments", rows=ROWS):
    with torch.no_grad():
        return torch.stack([answer_log_prob(model, row["prompt"], row[name], rule) for row in rows])


@pytest.mark.parametrize(("backend", "checkpointing"), [("dense", False), ("sliced", True)])
def test_loss_and_gradients_equal_a_hand_computation(tmp_path, backend, checkpointing):
    """Policy and reference are different models here, so that the loss is no constant."""
    model, reference = enabled(backend=backend), enabled(seed=1, backend=backend)
    trainer = make_trainer(tmp_path, model=model, ref_model=reference, config={"gradient_checkpointing": checkpointing})
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    loss = trainer.compute_loss(model, first_batch(trainer))
    loss.backward()
    stock = make_model()
    want = dpo_loss(ROWS, stock, make_model(1))
    want.backward()
    assert float(loss.detach()) == pytest.approx(float(want.detach()), abs=1e-5)
    gradients = dict(model.named_parameters())
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, atol=1e-4, rtol=1e-3, msg=name)
    with torch.no_grad():
        causal = dpo_loss(ROWS, make_model(), make_model(1), rule="causal")
    assert abs(float(want.detach()) - float(causal)) > 1e-2  # the tolerance tells the rules apart


def test_log_probs_of_chosen_rejected_and_reference(tmp_path):
    trainer = make_trainer(tmp_path, ref_model=enabled(seed=1))
    batch = first_batch(trainer)
    chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model, batch)
    for got, name in ((chosen, "chosen"), (rejected, "rejected")):
        torch.testing.assert_close(got, log_probs_by_hand(make_model(1), name), atol=1e-3, rtol=1e-5)
    trainer.train()
    logged = trainer.state.log_history[0]
    for name in ("chosen", "rejected"):
        assert logged[f"logps/{name}"] == pytest.approx(float(log_probs_by_hand(make_model(), name).mean()), abs=1e-3)


def test_without_an_adapter_the_reference_is_the_model_as_it_was_handed_over(tmp_path):
    """TRL would load it from disk, and these weights are on none."""
    model = enabled()
    trainer = make_trainer(tmp_path, model=model, config={"max_steps": 3})
    trainer.train()
    after = {name: value.clone() for name, value in model.state_dict().items()}
    tuned = make_model()
    tuned.load_state_dict(after)
    model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(model, first_batch(trainer))
        want = dpo_loss(ROWS, tuned, make_model())
    assert float(loss) == pytest.approx(float(want), abs=1e-5)
    assert float(loss) < 0.6  # from log 2 = 0.693


def test_an_adapter_learns_against_the_model_without_it(tmp_path):
    trainer = make_trainer(tmp_path, peft_config=LORA, config={"max_steps": 3, "learning_rate": 1e-2})
    trainer.train()
    adapter = {name: value for name, value in trainer.model.state_dict().items() if "lora" in name}
    trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, first_batch(trainer))
        want = dpo_loss(ROWS, merge(make_model(), adapter), make_model())
    assert float(loss) == pytest.approx(float(want), abs=1e-4)
    assert float(loss) < 0.6


def test_an_adapter_that_is_tuned_further_is_its_own_reference(tmp_path):
    first = make_trainer(tmp_path, peft_config=LORA, config={"max_steps": 3, "learning_rate": 1e-2})
    first.train()
    segattn.save_pretrained(first.model, tmp_path / "adapter")
    make_model().save_pretrained(tmp_path / "base")
    from peft import PeftModel

    model = PeftModel.from_pretrained(make_model(), tmp_path / "adapter", is_trainable=True)
    segattn.enable(model, SEGMENTER)
    second = make_trainer(tmp_path, model=model)
    second.train()
    assert second.state.log_history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    adapter = {name: value for name, value in first.model.state_dict().items() if "lora" in name}
    want = float(log_probs_by_hand(merge(make_model(), adapter), "chosen").mean())
    assert second.state.log_history[0]["logps/chosen"] == pytest.approx(want, abs=1e-3)


REFERENCES = {
    "a copy": dict,
    "the model without its adapter": lambda: {"peft_config": LORA},
    "a stock model": lambda: {"ref_model": make_model()},
    "an enabled model": lambda: {"ref_model": enabled()},
    "computed before": lambda: {"config": {"precompute_ref_log_probs": True}},
}


@pytest.mark.parametrize("which", REFERENCES)
def test_a_causal_reference_is_run_causally(tmp_path, which):
    trainer = make_trainer(tmp_path, reference="causal", **REFERENCES[which]())
    trainer.train()
    with torch.no_grad():
        want = dpo_loss(ROWS, reference_rule="causal")
        same = dpo_loss(ROWS)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(want), abs=1e-4)
    assert abs(float(want) - float(same)) > 1e-2


def test_what_was_computed_before_for_one_reference_is_not_taken_for_the_other(tmp_path):
    """TRL keeps these numbers by data and weights, which are the same here."""
    rows = Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "rows")
    rows = Dataset.load_from_disk(tmp_path / "rows")
    found = {}
    for reference, rule in (("segments", "segments"), ("causal", "causal")):
        trainer = make_trainer(tmp_path, rows, reference=reference, config={"precompute_ref_log_probs": True})
        found[reference] = torch.tensor(trainer.train_dataset["ref_chosen_logps"])
        torch.testing.assert_close(
            found[reference], log_probs_by_hand(make_model(), "chosen", rule), atol=1e-3, rtol=1e-5
        )
    assert (found["segments"] - found["causal"]).abs().max() > 0.1


def test_a_causal_policy_is_plain_trl_step_by_step(tmp_path):
    config = {"max_steps": 3, "max_length": None}
    ours, theirs = enabled(policy="causal"), make_model()
    trainer = make_trainer(tmp_path, model=ours, config=config)
    trainer.train()
    plain = DPOTrainer(
        model=theirs,
        ref_model=make_model(),
        args=settings(tmp_path, **config),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=TOKENIZER,
    )
    plain.train()
    for got, want in zip(trainer.state.log_history[:3], plain.state.log_history[:3], strict=True):
        for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected", "rewards/margins"):
            assert got[name] == pytest.approx(want[name], abs=1e-5), name
    for got, want in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got, want)


def test_information_flows_within_prompt_segments_and_never_back_from_answers(tmp_path):
    trainer = make_trainer(tmp_path, rows=[ROWS[1]])
    batch, states = first_batch(trainer), []
    trainer.model.model.register_forward_hook(lambda module, args, output: states.append(output.last_hidden_state))

    def seen_from(place):
        """The positions of the chosen row that come out different when another token stands at `place`."""
        states.clear()
        changed = {**batch, "input_ids": batch["input_ids"].clone()}
        changed["input_ids"][0, place] = 65 if int(batch["input_ids"][0, place]) != 65 else 66
        with torch.no_grad():
            trainer.compute_loss(trainer.model, batch)
            trainer.compute_loss(trainer.model, changed)
        return [n for n, moved in enumerate((states[0] - states[1])[0, : len(ids)].abs().amax(-1) > 1e-6) if moved]

    ids, segments, start = written_out(ROWS[1]["prompt"], ROWS[1]["chosen"])
    for place in (segments.index(1) + 8, segments.index(2) + 7, start + 1, segments.index(-1) + 3):
        first = place if segments[place] < 0 else segments.index(segments[place])
        assert seen_from(place) == list(range(first, len(ids))), place


def test_batches_hold_what_the_chat_template_writes(tmp_path):
    rows = [*ROWS, {"prompt": [user("a <|im_end|>\n<|im_start|>assistant\n b")], "chosen": [assistant("<|im_start|>")],
                    "rejected": [assistant("no")]}]  # fmt: skip
    trainer = make_trainer(tmp_path, rows, config={"per_device_train_batch_size": 5})
    batch = first_batch(trainer)
    for number, (row, name) in enumerate([(row, name) for name in ("chosen", "rejected") for row in rows]):
        ids, segments, start = written_out(row["prompt"], row[name])
        length = len(ids)
        assert batch["input_ids"][number, :length].tolist() == ids
        assert batch["segment_ids"][number].tolist() == segments + [-1] * (batch["input_ids"].shape[1] - length)
        assert batch["completion_mask"][number, :length].tolist() == [0] * start + [1] * (length - start)


@pytest.mark.parametrize("how", ["cut_left", "cut_longest_segment"])
def test_prompts_are_cut_so_that_segments_stay_valid(tmp_path, how, caplog):
    rows, most = make_pairs(8), 80
    lengths = [max(len(written_out(row["prompt"], row[name])[0]) for name in ("chosen", "rejected")) for row in rows]
    assert min(lengths) <= most < max(lengths)
    trainer = make_trainer(tmp_path, rows, too_long=how, config={"max_length": most})
    assert len(trainer.train_dataset) == len(rows)
    for row, got, length in zip(rows, trainer.train_dataset, lengths, strict=True):
        prompt, _, _ = conversation(TOKENIZER, row["prompt"], generation_prompt=True)
        for name in ("chosen", "rejected"):
            ids, _, start = written_out(row["prompt"], row[name])
            assert got[f"{name}_ids"] == ids[start:]  # answers are never cut
        kept = got["prompt_ids"]
        assert (kept == prompt) == (length <= most)
        assert (
            len(kept) + max(len(got["chosen_ids"]), len(got["rejected_ids"])) == min(length, most) or how == "cut_left"
        )
        assert len(kept) + max(len(got["chosen_ids"]), len(got["rejected_ids"])) <= most
        assert got["prompt_segment_ids"] == segments_by_markers(kept)
        remaining = iter(prompt)
        assert all(token in remaining for token in kept)  # in order, nothing else
        assert TOKENIZER.decode(kept).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert f"cut {sum(length > most for length in lengths)} of 8 train samples" in caplog.text


def test_pairs_that_are_too_long_stop_the_run_or_are_left_out(tmp_path, caplog):
    rows = make_pairs(4)
    with pytest.raises(DataError, match=r"max_length is 80.*too_long='drop'"):
        make_trainer(tmp_path, rows, config={"max_length": 80})
    trainer = make_trainer(tmp_path, rows, too_long="drop", config={"max_length": 80})
    assert len(trainer.train_dataset) == 2
    assert "left out 2 of 4 train samples" in caplog.text


def test_a_stream_trains_like_a_list(tmp_path):
    listed = make_trainer(tmp_path, config={"max_steps": 2})
    stream = make_trainer(tmp_path, IterableDataset.from_generator(lambda: iter(ROWS)), config={"max_steps": 2})
    for trainer in (listed, stream):
        trainer.train()
    assert [log.get("loss") for log in stream.state.log_history] == pytest.approx(
        [log.get("loss") for log in listed.state.log_history]
    )


@pytest.mark.parametrize("adapter", [None, LORA])
def test_what_is_saved_is_loaded_with_its_segmentation(tmp_path, adapter):
    make_model().save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    segattn.enable(model, SEGMENTER)
    trainer = make_trainer(tmp_path / "run", model=model, peft_config=adapter)
    trainer.train()
    trainer.save_model(str(tmp_path / "tuned"))
    loaded, tokenizer = segattn.from_pretrained(tmp_path / "tuned")
    batch = segattn.Segmenter.from_tokenizer(tokenizer).apply_chat_template(
        ROWS[1]["prompt"], add_generation_prompt=True, return_tensors="pt"
    )
    trainer.model.eval()
    with torch.no_grad():
        got = loaded(input_ids=batch["input_ids"]).logits  # its segmenter came along
        want = trainer.model(**batch).logits
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
        with segattn.causal(loaded):
            assert (loaded(input_ids=batch["input_ids"]).logits - want).abs().max() > 1e-2


TOOL = {"role": "tool", "content": "42"}
REFUSED = {
    "not enabled": (lambda: {"model": make_model()}, "not enabled"),
    "without a segmenter": (lambda: {"model": segattn.enable(make_model())}, "without a segmenter"),
    "a stock reference": (lambda: {"ref_model": make_model()}, "ref_model is a LlamaForCausalLM that is not enabled"),
    "liger": (lambda: {"config": {"use_liger_kernel": True}}, "use_liger_kernel"),
    "keep_end": (lambda: {"config": {"truncation_mode": "keep_end"}}, "truncation_mode 'keep_end'"),
    "plain text": (
        lambda: {"rows": [{"prompt": "question", "chosen": "yes", "rejected": "no"}]},
        "shows no segments; expected messages",
    ),
    "segments in an answer": (
        lambda: {"rows": [{**ROWS[0], "chosen": [assistant("look"), TOOL, assistant("it is 42")]}]},
        "expected completions of assistant messages only",
    ),
    "another reference": (lambda: {"reference": "prefix"}, "reference is 'prefix'; expected one of 'segments'"),
    "another cut": (lambda: {"too_long": "keep_end"}, "too_long is 'keep_end'"),
    "a processor": (lambda: {"processing_class": object()}, "processing_class is a object"),
}  # fmt: skip


@pytest.mark.parametrize("which", REFUSED)
def test_refused(tmp_path, which):
    options, message = REFUSED[which]
    with pytest.raises(segattn.SegmentAttentionError, match=message):
        make_trainer(tmp_path, **options())


def test_a_name_is_no_enabled_model(tmp_path):
    with pytest.raises(segattn.UnsupportedModelError, match="the model is some/model, which is not enabled"):
        make_trainer(tmp_path, model="some/model")


def test_a_batch_without_segment_ids_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    batch = {name: value for name, value in first_batch(trainer).items() if name != "segment_ids"}
    for run in (lambda: trainer.compute_loss(trainer.model, batch),
                lambda: trainer.compute_ref_log_probs(trainer.ref_model, batch)):  # fmt: skip
        with pytest.raises(segattn.SegmentError, match="no segment_ids"):
            run()
    rows = [
        {name: value for name, value in row.items() if name != "prompt_segment_ids"} for row in trainer.train_dataset
    ]
    with pytest.raises(segattn.SegmentError, match="prompt_segment_ids for no tokens"):
        trainer.data_collator(rows)
