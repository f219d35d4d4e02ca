"""The real model as it comes out of `fetch`, whichever source it came from."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segattn.pretrained import FetchError, cache, conversion


def test_the_cache_entry_is_whole(smollm2_path):
    assert cache.entry_problem(smollm2_path) is None


def test_answers_end_at_the_end_marker(smollm2_path, smollm2_tokenizer):
    from transformers import AutoConfig, GenerationConfig

    generation = GenerationConfig.from_pretrained(smollm2_path)
    end = smollm2_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert generation.eos_token_id == smollm2_tokenizer.eos_token_id == end == 2
    assert generation.pad_token_id == smollm2_tokenizer.pad_token_id == 2
    config = AutoConfig.from_pretrained(smollm2_path)
    assert (config.vocab_size, config.num_hidden_layers, config.hidden_size) == (49152, 30, 576)
    assert config.rms_norm_eps == 1e-5
    assert not hasattr(config, "quantization_config")
    assert smollm2_tokenizer.model_max_length == config.max_position_embeddings == 8192


def test_the_chat_template_is_chatml_with_the_default_system_prompt(smollm2_tokenizer):
    text = smollm2_tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@given(st.text(alphabet=st.sampled_from("ab 12\n\té.'"), max_size=30))
@settings(max_examples=200, deadline=None)
def test_digits_are_tokens_of_their_own_and_text_comes_back(smollm2_tokenizer, text):
    ids = smollm2_tokenizer(text).input_ids
    pieces = [smollm2_tokenizer.decode([token]) for token in ids]
    assert smollm2_tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert all(re.fullmatch(r"\d|\D*", piece) for piece in pieces)


def test_spaces_before_a_number_stay_together(smollm2_tokenizer):
    # Plain GPT-2 splitting, which the GGUF form falls back to, would give two tokens of one space each.
    assert smollm2_tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]


def test_the_model_answers(smollm2_path, smollm2_tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2_path)
    assert model.dtype == torch.bfloat16
    batch = smollm2_tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = model.generate(**batch, max_new_tokens=20, do_sample=False)[0, batch["input_ids"].shape[1] :]
    answer = smollm2_tokenizer.decode(out)
    assert "Paris" in answer
    assert answer.endswith("<|im_end|>")


def test_a_damaged_gguf_file_is_an_error(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(FetchError, match=r"model\.gguf cannot be read"):
        conversion.convert_smollm2(tmp_path / "model.gguf", tmp_path)
