"""The prompts of real chat templates, tokenized and parted as the harness does it."""

import pytest

import segattn
from segattn.harness import SegmentLM
from segattn.harness.rows import PromptSegments
from templates.conftest import NAMES, attach
from templates.real_tokenizers import REAL, load

CHAT = [
    {"role": "user", "content": "Is it so?"},
    {"role": "assistant", "content": "It is."},
    {"role": "user", "content": "Really so?\n"},
]
# Prompts that end with a header and a line break, with text, and with the end of a segment.
QUICK = ("smollm2", "written-alpaca", "written-mistral", "written-thinking")


def tokenizing_part(tokenizer, segmenter):
    """The harness's model without its model."""
    lm = object.__new__(SegmentLM)
    lm.tokenizer, lm.add_bos_token, lm.custom_prefix_token_id, lm._max_length = tokenizer, None, None, 1000
    lm.chat_template_args, lm._find_segments = {}, PromptSegments(segmenter)
    return lm


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_a_prompt_has_the_segments_of_its_chat(name, smollm2_tokenizer):
    tokenizer = attach(load(name) if name in REAL else smollm2_tokenizer, NAMES[name])
    segmenter = segattn.Segmenter.from_tokenizer(tokenizer)
    lm, want = (
        tokenizing_part(tokenizer, segmenter),
        segmenter.apply_chat_template(CHAT, add_generation_prompt=True),
    )
    text = lm.apply_chat_template(CHAT)
    context, continuation = lm._encode_pair(text, "yes")
    [row] = lm._scored_rows([((text, "yes"), context, continuation)])
    assert lm.tok_encode(text) == want["input_ids"]
    assert list(row.segments[: len(context)]) == want["segment_ids"][: len(context)]
    assert set(row.segments[len(context) :]) <= {-1}
