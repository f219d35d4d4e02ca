"""Conversations packed into one row, and rows joined without padding, equal the same rows run one by one."""

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import FalconH1Config, FalconH1ForCausalLM, GPT2Config, GPT2LMHeadModel

import segattn
from cli.tiny_chat import make_model, make_tokenizer
from oracle import loop_mask
from segattn.data import DataError
from segattn.training import SegmentCollator
from segattn.training.dataset import encode_dataset
from segattn.training.packing import check_documents_apart, flatten, pack
from strategies import segmentations
from training.conftest import make_samples
from training.test_trainer import make_trainer

TOKENIZER = make_tokenizer()


def encoded(policy="turns", count=9):
    segmenter = segattn.Segmenter.from_tokenizer(TOKENIZER, policy=policy)
    return encode_dataset(make_samples(count, learn="all"), segmenter, max_length=None, too_long="error").dataset


@st.composite
def rows(draw):
    row = draw(segmentations(min_length=1, max_length=12))
    tokens = draw(st.lists(st.integers(3, 250), min_size=len(row), max_size=len(row)))
    free = [place == 0 or row[place] == -1 or row[place] != row[place - 1] for place in range(len(row))]
    labels = [token if open_ and draw(st.booleans()) else -100 for token, open_ in zip(tokens, free, strict=True)]
    return {"input_ids": tokens, "labels": labels, "segment_ids": row}


def documents(positions):
    """The number of the document of each token: a new one wherever the positions begin at 0."""
    numbers, current = [], -1
    for position in positions:
        current += position == 0
        numbers.append(current)
    return numbers


def same_segments(row):
    """Which tokens share a segment, as a set of pairs."""
    return {(a, b) for a in range(len(row)) for b in range(len(row)) if row[a] == row[b] >= 0}


@settings(max_examples=60, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=8), st.integers(12, 30))
def test_packing_keeps_every_row_whole_and_its_segments_its_own(given_rows, most):
    dataset = Dataset.from_dict({name: [row[name] for row in given_rows] for name in given_rows[0]})
    packed = pack(dataset, most, quiet=True)
    found = []
    for row in packed:
        assert len(row["input_ids"]) == len(row["labels"]) == len(row["segment_ids"]) == sum(row["seq_lengths"]) <= most
        segattn.segments.check_segment_ids(torch.tensor(row["segment_ids"]))
        start = 0
        for length in row["seq_lengths"]:
            part = {name: row[name][start : start + length] for name in given_rows[0]}
            found.append((part["input_ids"], part["labels"], same_segments(part["segment_ids"])))
            start += length
    want = [(row["input_ids"], row["labels"], same_segments(row["segment_ids"])) for row in given_rows]
    assert sorted(map(repr, found)) == sorted(map(repr, want))


@settings(max_examples=60, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=4), st.sampled_from([1, 8]), st.booleans())
def test_joined_rows_follow_one_another(given_rows, multiple, packed_first):
    batch_rows = list(given_rows)
    if packed_first:
        batch_rows = list(pack(Dataset.from_list(given_rows), 48, quiet=True))
    batch = {name: value[0].tolist() for name, value in flatten(batch_rows, 7, multiple).items()}
    total = sum(len(row["input_ids"]) for row in given_rows)
    assert len(batch["input_ids"]) % multiple == 0
    assert 0 <= len(batch["input_ids"]) - total < multiple
    segattn.segments.check_segment_ids(torch.tensor(batch["segment_ids"]))
    start = 0
    for row in batch_rows:
        for length in row.get("seq_lengths", [len(row["input_ids"])]):
            assert batch["position_ids"][start : start + length] == list(range(length))
            assert batch["labels"][start] == -100
            start += length
    assert batch["input_ids"][:total] == [token for row in batch_rows for token in row["input_ids"]]
    joined = [(token, label) for token, label in zip(batch["input_ids"], batch["labels"], strict=True)]
    assert all(label in (-100, token) for token, label in joined)
    start = 0
    for row in batch_rows:
        size = len(row["input_ids"])
        assert same_segments(batch["segment_ids"][start : start + size]) == same_segments(row["segment_ids"])
        start += size
    assert batch["segment_ids"][total:] == [-1] * (len(batch["segment_ids"]) - total)


def loss_and_gradients(model, batches):
    """The summed answer loss of some calls, and the gradients of all weights."""
    model.zero_grad()
    total = torch.zeros(())
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = model(**inputs, use_cache=False).logits
        total = total + cross_entropy(logits[0, :-1], batch["labels"][0, 1:], reduction="sum", ignore_index=-100)
    total.backward()
    return total.item(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("backend", ["dense", "sliced"])
@pytest.mark.parametrize("policy", ["turns", "causal"])
def test_loss_and_gradients_of_a_packed_row_are_those_of_separate_rows(family, backend, policy):
    dataset = encoded(policy)
    packed = pack(dataset, 160, quiet=True)
    assert len(packed) < len(dataset)
    assert max(len(lengths) for lengths in packed["seq_lengths"]) >= 3
    model = segattn.enable(make_model(family=family), backend=backend)
    batches = [SegmentCollator(0)([row]) for row in packed]
    loss, gradients = loss_and_gradients(model, batches)
    # Separate runs share no code with it: a stock model, masks from a double loop.
    stock = make_model(family=family)
    stock.set_attn_implementation("eager")
    window = 8 if family == "gemma3" else None
    separate = [by_hand(row, window) for row in dataset]
    want, wanted = loss_and_gradients(stock, separate)
    assert loss == pytest.approx(want, rel=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


def by_hand(row, window):
    """A row alone, with an additive mask for each kind of layer."""

    def additive(allowed):
        return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)

    mask = additive(loop_mask([row["segment_ids"]]))
    if window is not None:
        local = additive(loop_mask([row["segment_ids"]], window=window))
        mask = {"full_attention": mask, "sliding_attention": local}
    return {
        "input_ids": torch.tensor([row["input_ids"]]),
        "labels": torch.tensor([row["labels"]]),
        "attention_mask": mask,
    }


def test_ids_that_are_reused_or_cross_a_border_are_refused_not_repaired():
    model = segattn.enable(make_model())
    batch = flatten([{"input_ids": [5] * 6, "labels": [-100] * 6, "segment_ids": [0] * 6, "seq_lengths": [3, 3]}], 0)
    with pytest.raises(segattn.SegmentError, match="runs across the border"):
        model(**batch, use_cache=False)
    again = {"input_ids": [5] * 6, "labels": [-100] * 6, "segment_ids": [0, 0, -1, 0, 0, -1], "seq_lengths": [3, 3]}
    with pytest.raises(segattn.SegmentError, match="opens segment 0 again"):
        model(**flatten([again], 0), use_cache=False)


FLAGS = [{"packing": True, "max_length": 200}, {"padding_free": True, "max_length": 200}]


def first_step(tmp_path, policy, **options):
    """Loss, and the adapter after one step of plain gradient descent on six samples."""
    arguments = {"per_device_train_batch_size": 6, "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}
    trainer = make_trainer(tmp_path, policy, **{**arguments, **options})
    trainer.train()
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items() if "lora" in name}
    return trainer, trainer.state.log_history[0]["loss"], weights


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("policy", ["turns", "causal"])
def test_a_training_step_on_joined_rows_is_the_step_on_padded_ones(tmp_path, policy, flags):
    padded, loss, weights = first_step(tmp_path / "padded", policy)
    joined, joined_loss, joined_weights = first_step(tmp_path / "joined", policy, **flags)
    batch = next(iter(joined.get_train_dataloader()))
    assert set(batch) == {"input_ids", "labels", "segment_ids", "position_ids"}
    assert batch["input_ids"].shape[0] == 1
    assert documents(batch["position_ids"][0].tolist())[-1] == 5
    assert "attention_mask" in next(iter(padded.get_train_dataloader()))
    assert joined_loss == pytest.approx(loss, rel=1e-5)
    moved = 0.0
    for name, value in weights.items():
        torch.testing.assert_close(joined_weights[name], value, rtol=1e-5, atol=1e-6)
        moved = max(moved, float(value.abs().max()) if "lora_B" in name else 0.0)
    assert moved > 1e-3  # the step went somewhere: lora_B begins at zero


@pytest.mark.parametrize("flags", [*FLAGS, {"eval_packing": True, "max_length": 200}])
def test_held_out_loss_is_the_same_packed_and_padded(tmp_path, flags):
    options = {"eval_dataset": encoded(), "eval_strategy": "steps"}
    padded = make_trainer(tmp_path / "padded", **options).evaluate()
    joined = make_trainer(tmp_path / "joined", **options, **flags).evaluate()
    assert joined["eval_loss"] == pytest.approx(padded["eval_loss"], rel=1e-5)


def test_opening_works_on_packed_rows(tmp_path):
    options = {"ours": {"opening_steps": 2}, "max_steps": 2}
    _, padded, _ = first_step(tmp_path / "padded", "turns", **options)
    _, plain, _ = first_step(tmp_path / "plain", "turns", max_steps=2)
    _, joined, _ = first_step(tmp_path / "joined", "turns", **options, **FLAGS[0])
    assert joined == pytest.approx(padded, rel=1e-5)
    assert abs(padded - plain) > 1e-3


def test_what_would_split_a_document_is_refused(tmp_path):
    with pytest.raises(segattn.UnsupportedModelError, match="packing_strategy 'wrapped' splits"):
        make_trainer(tmp_path, packing=True, packing_strategy="wrapped")
    with pytest.raises(DataError, match=r"row \d+ has \d+ tokens and cannot be packed into rows of 30"):
        make_trainer(tmp_path, packing=True, max_length=30)
    with pytest.raises(DataError, match="packing needs max_length"):
        make_trainer(tmp_path, packing=True, max_length=None)


def tiny_hybrid():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    mamba = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
    config = FalconH1Config(vocab_size=258, num_key_value_heads=2, initializer_range=0.4, **shape, **mamba)
    return FalconH1ForCausalLM(config)


def test_models_that_mix_documents_outside_of_attention_are_refused():
    check_documents_apart(segattn.enable(make_model()))
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=258, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
    )
    check_documents_apart(segattn.enable(gpt2))
    with pytest.raises(segattn.UnsupportedModelError, match=r"other outputs in a packed row|cannot run packed"):
        check_documents_apart(segattn.enable(tiny_hybrid(), allow_partial=True))
