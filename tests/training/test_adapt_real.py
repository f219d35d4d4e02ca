"""The real SmolLM2: a few steps bring it nearer to its causal self, and the adapter is small."""

import itertools

import pytest

import segattn
from segattn.training.adapt import adapt
from segattn.training.adapt_settings import AdaptSettings
from segattn.training.plain_prompts import plain_prompts

pytestmark = pytest.mark.slow


def test_a_few_steps_bring_the_model_nearer_to_its_causal_self(smollm2_path, tmp_path):
    settings = AdaptSettings(
        model=str(smollm2_path),
        output_dir=str(tmp_path / "out"),
        steps=8,
        batch_size=4,
        held_out=4,
        max_new_tokens=12,
        learning_rate=1e-3,
        warmup_steps=2,
        lora_r=4,
        adapter_dtype="bfloat16",
    )
    result = adapt(settings)

    def mean(student, measure="kl"):
        rows = result.held_out[student]
        return sum(getattr(row, measure) for row in rows) / len(rows)

    assert mean("base, causal") < 0.01
    assert mean("base, segments") > 1.0
    assert mean("adapted, segments") < mean("base, segments") / 2
    assert mean("adapted, segments", "top1") > mean("base, segments", "top1")
    assert result.adapter_bytes < 4_000_000
    model, tokenizer = segattn.from_pretrained(tmp_path / "out")
    segmenter = segattn.Segmenter.from_tokenizer(tokenizer)
    messages = [dict(message) for message in next(itertools.islice(plain_prompts("dev"), 1)).sample.messages]
    batch = segmenter.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    assert model.generate(**batch, max_new_tokens=2, do_sample=False).shape[1] == batch["input_ids"].shape[1] + 2
