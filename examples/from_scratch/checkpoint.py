"""What training begins with: a tokenizer trained on the data, and a small decoder of random weights."""

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast, set_seed

import segattn
from segattn.data import Sample

__all__ = ["ANSWER_ROLE", "make_model", "make_segmenter", "train_tokenizer"]

END = "<|end|>"
ANSWER_ROLE = "<|assistant|>"
ROLES = ("<|system|>", "<|user|>", ANSWER_ROLE)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(samples: Iterable[Sample]) -> PreTrainedTokenizerFast:
    """Train a tokenizer of words on the text of samples; its chat template has one token per role and an end marker."""
    backend = Tokenizer(models.WordLevel(unk_token="<|unknown|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    texts = (message["content"] for sample in samples for message in sample.conversation)
    special = ["<|unknown|>", "<|padding|>", END, *ROLES]
    backend.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<|unknown|>",
        pad_token="<|padding|>",
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
    )


def make_segmenter(tokenizer: PreTrainedTokenizerFast, policy: str) -> segattn.Segmenter:
    """Return a segmenter with the template's markers, named.

    `Segmenter.from_tokenizer` reads a template by rendering words through it, and this vocabulary knows none of them.
    """
    *prompt, answer = ROLES
    return segattn.Segmenter.from_markers(tokenizer, bidirectional=prompt, causal=[answer], policy=policy)


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int, *, layers: int = 2, width: int = 64) -> Any:
    """Return a GPT-2 of random weights: learned positions, no dropout.

    The weights begin five times larger than GPT-2's own (standard deviation .1): at this width attention learns to
    match tokens in a tenth of the steps that way.
    """
    set_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=width,
        n_inner=2 * width,
        n_layer=layers,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config)
