"""Full fine-tuning, LoRA, DoRA and QLoRA: one step of each equals a hand computation on plain, dequantized weights."""

import importlib.util

import pytest
import torch
from peft import get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM
from trl import get_peft_config, get_quantization_config

import segattn
from chatml import conversation
from cli.tiny_chat import make_tokenizer
from oracle import loop_mask
from segattn.training import ModelSettings, SegmentCollator, SegmentSFTTrainer, SFTSettings, TrainSettings, train
from segattn.training.dataset import encode_dataset
from training.conftest import make_samples

TOKENIZER = make_tokenizer()
SEGMENTER = segattn.Segmenter.from_tokenizer(TOKENIZER)
SAMPLES = make_samples(4, learn="all")
with_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed (pip install bitsandbytes); 4-bit weights need it",
)
QUANTIZED = {"load_in_4bit": True, "dtype": "float32"}
KINDS = [
    pytest.param({"use_peft": False}, id="full"),
    pytest.param({}, id="lora"),
    pytest.param({"use_dora": True}, id="dora"),
    pytest.param(QUANTIZED, id="qlora", marks=with_bitsandbytes),
    pytest.param({**QUANTIZED, "use_dora": True}, id="qdora", marks=with_bitsandbytes),
]


def settings(tiny, **kind):
    return ModelSettings(model_name_or_path=tiny, lora_r=2, lora_dropout=0.0, **kind)


def load(tiny, model):
    quantization = get_quantization_config(model)
    options = {} if quantization is None else {"quantization_config": quantization}
    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32, **options)


def sft(folder, **options):
    arguments = {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
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
    return SFTSettings(str(folder), **arguments)


def dequantized(tiny, network):
    """A stock model in float32 with the weights that a loaded one computes with."""
    plain, found = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), 0
    if getattr(network, "is_loaded_in_4bit", False):
        import bitsandbytes

        inner = network.get_base_model() if hasattr(network, "peft_config") else network
        layers = {name.replace(".base_layer", ""): module for name, module in inner.named_modules()}
        for name, module in plain.named_modules():
            stored = layers.get(name)
            if isinstance(stored, bitsandbytes.nn.Linear4bit):
                whole = bitsandbytes.functional.dequantize_4bit(stored.weight.data, stored.weight.quant_state)
                assert not torch.equal(whole, module.weight)
                module.weight.data.copy_(whole)
                found += 1
        assert found == 14  # seven in each of two layers
    return plain


def answer_loss(model, rule="segments"):
    """The mean over answer tokens, row by row, under masks from a double loop."""
    losses = []
    for sample in SAMPLES:
        messages = [*sample.messages, {"role": "assistant", "content": sample.answer}]
        ids, labels, segments = conversation(TOKENIZER, messages, sample.learn)
        allowed = loop_mask([segments if rule == "segments" else [-1] * len(ids)])
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        logits = model(input_ids=torch.tensor([ids]), attention_mask=mask).logits[0].float()
        losses.append(cross_entropy(logits[:-1], torch.tensor(labels[1:]), reduction="none", ignore_index=-100))
    labelled = torch.cat(losses)
    return labelled.sum() / (labelled != 0).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_equals_a_hand_computation(tiny, tmp_path, kind):
    model = settings(tiny, **kind)
    network = load(tiny, model)
    plain = dequantized(tiny, network)
    trainer = SegmentSFTTrainer(
        model=segattn.enable(network, SEGMENTER),
        args=sft(tmp_path),
        data_collator=SegmentCollator(TOKENIZER.pad_token_id),
        train_dataset=encode_dataset(SAMPLES, SEGMENTER, max_length=None, too_long="error")[0],
        processing_class=TOKENIZER,
        peft_config=get_peft_config(model),
    )
    if kind.get("use_peft", True):
        plain = get_peft_model(plain, get_peft_config(model))
    ours, theirs = (
        {name: p for name, p in net.named_parameters() if p.requires_grad} for net in (trainer.model, plain)
    )
    assert set(ours) == set(theirs)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.data = parameter.data.float()  # TRL keeps the adapter of a quantized model in bfloat16
            if "lora_" in name and "magnitude" not in name:  # an adapter begins as nothing
                parameter.copy_(0.2 * torch.randn(parameter.shape))
            theirs[name].copy_(parameter)
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    loss.backward()
    want = answer_loss(plain)
    want.backward()
    assert float(loss.detach()) == pytest.approx(float(want.detach()), abs=1e-4)
    with torch.no_grad():
        assert abs(float(want) - float(answer_loss(plain, "causal"))) > 1e-2
    for name, parameter in theirs.items():
        difference = (ours[name].grad.float() - parameter.grad).norm()
        assert difference <= 1e-3 * parameter.grad.norm() + 1e-6, name
    assert any("magnitude" in name for name in ours) == bool(kind.get("use_dora"))


@pytest.mark.parametrize("kind", KINDS[2:4])  # whole weights and LoRA: tests/training/test_run.py
def test_train_saves_what_comes_back_under_segments(tiny, tmp_path, kind):
    model = settings(tiny, **kind)
    result = train(TrainSettings(), sft(tmp_path / "run"), model, samples=SAMPLES, held_out=())
    quantization = get_quantization_config(model)
    before = load(tiny, model)
    with torch.no_grad():
        plain = dequantized(tiny, before)
        [(_, loss)] = result.train_losses
        # A quantized model's adapter is computed in bfloat16.
        assert loss == pytest.approx(float(answer_loss(plain)), abs=2e-2 if quantization else 1e-4)
        assert abs(loss - float(answer_loss(plain, "causal"))) > (5e-2 if quantization else 1e-2)
    options = {} if quantization is None else {"quantization_config": quantization, "dtype": torch.float32}
    loaded, _ = segattn.from_pretrained(tmp_path / "run", **options)
    ids = torch.tensor([conversation(TOKENIZER, SAMPLES[1].messages, generation_prompt=True)[0]])
    with torch.no_grad():
        want = result.model(input_ids=ids).logits
        error = (loaded(input_ids=ids).logits - want).abs().mean()
        with segattn.causal(loaded):
            assert error < 0.1 * (loaded(input_ids=ids).logits - want).abs().mean()
        assert error < (5e-2 if quantization else 1e-5)
        assert (before(input_ids=ids).logits - want).abs().mean() > 0.1  # it did learn
