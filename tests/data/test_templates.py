"""Chats of several turns, and chats with tools, under every template that a Segmenter reads: where the labels are."""

import json

import pytest
import torch

import segattn
from segattn.data import DataError, Encoder, Sample
from templates.conftest import NAMES, build

ANSWERS = ("Over there.", "Still there.", "No idea.")
CHAT = (
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": ANSWERS[0]},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": ANSWERS[1]},
    {"role": "user", "content": "Why?"},
)
# What a model may say around the text of an answer: end markers, a channel, a thinking block.
END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "</s>", "<|end|>", "<|END|>", "<｜end▁of▁sentence｜>")  # noqa: RUF001

# With SmolLM2's tokenizer this template's generation prompt ends in one token that is two once an answer follows.
JOINED = ("written-llama-3.1",)


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    return build(request)


def learned(row, tokenizer):
    """The texts of the runs of labels."""
    found, before = [], False
    for label in row.labels:
        if label != -100:
            if not before:
                found.append([])
            found[-1].append(label)
        before = label != -100
    return [tokenizer.decode(run) for run in found]


def test_each_answer_is_learned_up_to_its_end_marker_and_no_further(case):
    encoder = Encoder(case.segmenter)
    row = encoder.encode(Sample(CHAT, ANSWERS[2], learn="all"))
    texts = learned(row, case.tokenizer)
    assert len(texts) == 3
    for text, answer in zip(texts, ANSWERS, strict=True):
        before, found, after = text.partition(answer)
        assert found, text
        assert after.strip() in END_TOKENS
        # Before it: what the template writes between its generation prompt and an answer.
        assert before.strip() in ("", "<|channel|>final<|message|>", "</think>", "<think>\n\n</think>")
    segattn.check_labels(torch.tensor(row.segment_ids), torch.tensor(row.labels))
    assert row.segment_ids == case.segmenter.segment_ids(row.input_ids).tolist()
    [last] = learned(Encoder(case.segmenter).encode(Sample(CHAT, ANSWERS[2])), case.tokenizer)
    assert last == texts[-1]


def test_one_row_of_several_turns_holds_each_turn_as_it_stands_alone(case):
    """Every turn encoded by itself is the beginning of the row, labels included: one pass trains them all."""
    encoder = Encoder(case.segmenter)
    row = encoder.encode(Sample(CHAT, ANSWERS[2], learn="all"))
    for turn in range(3):
        alone = encoder.encode(Sample(CHAT[: 2 * turn + 1], ANSWERS[turn], learn="last"))
        end = max(place for place, label in enumerate(alone.labels) if label != -100) + 1
        if not case.coverage.stable and alone.input_ids[:end] != row.input_ids[:end]:
            continue  # a template that writes the last answer otherwise than earlier ones
        if case.name in JOINED:
            assert case.tokenizer.decode(row.input_ids).startswith(case.tokenizer.decode(alone.input_ids[:end]))
            continue
        assert alone.input_ids[:end] == row.input_ids[:end]
        assert alone.segment_ids[:end] == row.segment_ids[:end]
        start = next(place for place, label in enumerate(alone.labels) if label != -100)
        assert alone.labels[start:end] == row.labels[start:end]


def test_each_answer_follows_the_tokens_that_inference_begins_with(case):
    """The generation prompt, from its last special token on, stands before the first label of each turn."""
    encoder = Encoder(case.segmenter)
    row = encoder.encode(Sample(CHAT, ANSWERS[2], learn="all"))
    starts = [n for n, label in enumerate(row.labels) if label != -100 and row.labels[n - 1] == -100]
    special = set(case.tokenizer.all_special_ids)
    differing = 0
    for turn, start in enumerate(starts):
        chat = [*CHAT[: 2 * turn + 1]]
        prompt = list(case.segmenter.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])
        tail = next((n for n in range(1, len(prompt) + 1) if prompt[-n] in special), len(prompt))
        differing += row.input_ids[start - tail : start] != prompt[-tail:]
        if case.name not in JOINED and not encoder.rewritten:
            assert row.input_ids[:start] == prompt
    # Only a template that takes something out of earlier answers begins them otherwise, and that is counted.
    assert differing == encoder.rewritten
    assert encoder.rewritten == (2 if case.name == "written-thinking" else 0)


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}


def test_tools_are_described_and_calls_are_learned():
    from templates.real_tokenizers import load

    tokenizer = load("qwen3")
    encoder = Encoder(segattn.Segmenter.from_tokenizer(tokenizer))
    question = ({"role": "user", "content": "Is it raining in Bonn?"},)
    call = encoder.encode(Sample(question, "", tools=(TOOL,), tool_calls=(CALL,)))
    text = tokenizer.decode(call.input_ids)
    assert "Tells the weather of a city." in text
    [learned_call] = learned(call, tokenizer)
    body = learned_call.split("<tool_call>")[1].split("</tool_call>")[0]
    assert json.loads(body) == {"name": "weather", "arguments": {"city": "Bonn"}}
    assert learned_call.endswith("</tool_call><|im_end|>")
    # The tools are in the system segment, and the rest of the conversation is learned in the same pass.
    assert call.segment_ids[0] == 0
    result = ({"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "rain"})
    whole = encoder.encode(Sample((*question, *result), "Yes.", tools=(TOOL,), learn="all"))
    texts = learned(whole, tokenizer)
    assert texts[0].endswith("</tool_call><|im_end|>")
    assert texts[1].endswith("Yes.<|im_end|>")
    assert set(whole.segment_ids) == {-1, 0, 1, 2}
    with pytest.raises(DataError, match="its answer calls tools"):
        encoder.prompt(Sample(question, "", tools=(TOOL,), tool_calls=(CALL,), id="7"), ["yes"])
