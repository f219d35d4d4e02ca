"""The real SmolLM2: its first training loss against a stock forward pass, and whether it learns at all."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from oracle import loop_mask
from segattn.data import Sample
from segattn.training import ModelSettings, SFTSettings, TrainSettings, train

pytestmark = pytest.mark.slow

PLACES = ("kitchen", "garden", "barn")


def story(number):
    first, last = PLACES[number % 3], PLACES[(number + 1 + number // 3 % 2) % 3]
    text = f"Emma goes to the {first}. Emma goes to the {last}. Where is Emma?"
    system = {"role": "system", "content": "Answer with one word."}
    return Sample((system, {"role": "user", "content": text}), last, PLACES, id=str(number))


def by_hand(folder, tokenizer, sample, rule):
    """Segments found in the ids by eye: <|im_start|>, role, ..., <|im_end|>, line break."""
    messages = [*sample.messages, {"role": "assistant", "content": sample.answer}]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    heads = [position for position, token in enumerate(ids) if token == start]
    assert len(heads) == 3
    segments = [0] * heads[1] + [1] * (heads[2] - heads[1]) + [-1] * (len(ids) - heads[2])
    answer = tokenizer(sample.answer, add_special_tokens=False).input_ids
    last = len(ids) - 1 - ids[::-1].index(end)
    assert ids[last - len(answer) : last] == answer
    labels = torch.full((len(ids),), -100)
    labels[last - len(answer) : last + 1] = torch.tensor([*answer, end])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    mask = loop_mask([segments if rule == "segments" else [-1] * len(ids)])
    with torch.no_grad():
        logits = model(torch.tensor([ids]), attention_mask=mask).logits[0]
    return float(cross_entropy(logits[:-1], labels[1:]))


def run(folder, output, attention, dtype="float32", steps=1, **options):
    sft = SFTSettings(
        str(output),
        max_steps=steps,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        learning_rate=1e-3,
        **options,
    )
    model = ModelSettings(model_name_or_path=str(folder), dtype=dtype, lora_dropout=0.0)
    settings = TrainSettings(attention=attention)
    return train(settings, sft, model, samples=[story(n) for n in range(2, 8)], held_out=[story(n) for n in range(3)])


def test_the_first_loss_is_the_hand_built_one_under_each_rule(smollm2_path, smollm2_tokenizer, tmp_path):
    want = {rule: by_hand(smollm2_path, smollm2_tokenizer, story(2), rule) for rule in ("segments", "causal")}
    assert abs(want["segments"] - want["causal"]) > 0.5
    for rule in want:
        options = {"per_device_train_batch_size": 1, "train_sampling_strategy": "sequential"}
        result = run(smollm2_path, tmp_path / rule, rule, **options)
        assert result.train_losses[0][1] == pytest.approx(want[rule], abs=1e-3)


@pytest.mark.parametrize("attention", ["segments", "causal"])
def test_a_few_steps_lower_the_held_out_loss(smollm2_path, tmp_path, attention):
    result = run(
        smollm2_path, tmp_path, attention, dtype="bfloat16", steps=12, per_device_train_batch_size=6, warmup_steps=2
    )
    assert result.curve[-1].loss < result.curve[0].loss / 2
