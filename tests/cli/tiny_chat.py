"""Tiny random models with a byte-level ChatML tokenizer, and a segmenter written by hand for it."""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BatchEncoding,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(START, special=True), AddedToken(END, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=START, eos_token=END, pad_token=END, chat_template=TEMPLATE
    )


def make_model(seed=0, context=2048, family="llama"):
    torch.manual_seed(seed)
    shape = {
        "vocab_size": 258,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 257,
        "initializer_range": 0.4,
    }
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()
    layers = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(head_dim=8, sliding_window=8, layer_types=layers, **shape)
    return Gemma3ForCausalLM(config).eval()


class HandSegmenter:
    """Every message but the assistant's is a segment; knows nothing of templates."""

    policy = "turns"

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def apply_chat_template(self, messages, add_generation_prompt=True, return_tensors="pt", return_dict=True):
        ids, segments = [], []
        for number, message in enumerate(messages):
            text = f"{START}{message['role']}\n{message['content']}{END}\n"
            new = self.tokenizer(text).input_ids
            ids += new
            segments += [-1 if message["role"] == "assistant" else number] * len(new)
        new = self.tokenizer(f"{START}assistant\n").input_ids
        ids, segments = torch.tensor([ids + new]), torch.tensor([segments + [-1] * len(new)])
        data = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "segment_ids": segments}
        return BatchEncoding(data)

    def segment_ids(self, input_ids, attention_mask=None):
        raise AssertionError("segment ids are always passed on")

    def to_dict(self):
        return {}


def save_checkpoint(folder, **options):
    make_model(**options).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
