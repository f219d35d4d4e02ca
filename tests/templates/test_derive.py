# ruff: noqa: RUF001 (full-width bars are DeepSeek's own)
"""Markers read from chat templates, against lists made by hand; templates that cannot be read."""

import copy

import pytest
import torch

from segattn import Segmenter, TemplateError
from segattn.templates.derive import derive
from templates.chat_templates import COVERAGE, REFUSING, UNMARKED
from templates.conftest import attach
from templates.oracle_segments import segments_of
from templates.real_tokenizers import load

# Per tokenizer: (texts that open a segment, texts that end it, BOS, whether system text stands without a header).
EXPECTED = {
    "qwen3": ({"<|im_start|>user", "<|im_start|>system"}, {"<|im_start|>assistant"}, set(), False),
    "gemma3": ({"<start_of_turn>user"}, {"<start_of_turn>model"}, {"<bos>"}, False),
    "deepseek_v3": (
        {"<｜User｜>", "<｜tool▁outputs▁begin｜>"},
        {"<｜Assistant｜>", "<｜tool▁outputs▁end｜>"},
        {"<｜begin▁of▁sentence｜>"},
        True,
    ),
    "llama2": ({"[INST]"}, {"[/INST]"}, {"<s>"}, False),
    "llama3_1": (
        {f"<|start_header_id|>{role}<|end_header_id|>" for role in ("system", "user", "developer", "tool")},
        {"<|start_header_id|>assistant<|end_header_id|>"},
        {"<|begin_of_text|>"},
        False,
    ),
    "gptoss": (
        {"<|start|>user<|message|>", "<|start|>system<|message|>", "<|start|>developer<|message|>"}
        | {"<|start|>functions"},
        {"<|start|>assistant"},
        {"<|startoftext|>"},
        False,
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_markers_of_real_tokenizers(name):
    table = derive(load(name)).table
    texts = {kind: {m.text.strip() for m in table.markers if m.kind == kind} for kind in ("segment", "causal", "close")}
    bos = {m.text for m in table.markers if m.kind == "bos"}
    assert (texts["segment"], texts["causal"] | texts["close"], bos, table.leading_segment) == EXPECTED[name]


def test_roles_are_those_that_the_template_takes(case):
    assert set(case.coverage.roles) <= set(derive(case.tokenizer).roles)


def test_tool_messages_are_segments(tool_case):
    case = tool_case
    function = {"name": "weather", "arguments": {"place": "Oslo"}}
    call = {"id": "abcdefghi", "type": "function", "function": function}
    messages = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "a shower"},
        {"role": "assistant", "content": "Some."},
        {"role": "user", "content": "Thanks"},
    ]
    batch = case.segmenter.apply_chat_template(messages, add_generation_prompt=True)
    expected_ids, expected = segments_of(case.tokenizer, case.coverage, messages, add_generation_prompt=True)
    assert batch["input_ids"] == expected_ids
    assert batch["segment_ids"] == expected


def test_an_injected_system_prompt_is_a_segment(smollm2_tokenizer):
    segmenter = Segmenter.from_tokenizer(smollm2_tokenizer)
    batch = segmenter.apply_chat_template([{"role": "user", "content": "Hi"}])
    (start, end), user = segmenter.spans(batch["input_ids"])
    assert start == 0
    assert "You are a helpful AI assistant" in smollm2_tokenizer.decode(batch["input_ids"][start:end])
    assert smollm2_tokenizer.decode(batch["input_ids"][slice(*user)]) == "<|im_start|>user\nHi<|im_end|>\n"


# As LLaMA-Factory writes them: no generation prompt, the answer's header follows each question.
WITH_QUESTIONS = """{%- for m in messages -%}
{%- if m.role == 'assistant' -%}{{ m.content + '<|im_end|>\n' }}
{%- elif m.role == 'user' -%}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n<|im_start|>assistant\n' }}
{%- elif m.role == 'system' -%}{{ '<|im_start|>system\n' + m.content + '<|im_end|>\n' }}{%- endif -%}
{%- endfor -%}"""


def test_a_header_that_follows_each_question_is_the_answers(smollm2_tokenizer):
    """The same tokens have the same segments, whichever template has written them; plain words are no markers."""
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.chat_template = WITH_QUESTIONS
    segmenter, usual = Segmenter.from_tokenizer(tokenizer), Segmenter.from_tokenizer(smollm2_tokenizer)
    messages = [
        {"role": "system", "content": "Be brief, user."},
        {"role": "user", "content": "Is a user a system?"},
        {"role": "assistant", "content": "The user is."},
        {"role": "user", "content": "assistant?"},
    ]
    batch = segmenter.apply_chat_template(messages)
    assert batch["input_ids"] == usual.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert batch["segment_ids"] == usual.segment_ids(torch.tensor([batch["input_ids"]]))[0].tolist()
    assert max(batch["segment_ids"]) == 2


def test_dates_in_an_injected_system_prompt_change_nothing(smollm2_tokenizer):
    tokenizer = attach(smollm2_tokenizer, COVERAGE["llama-3.1"])
    segmenter = Segmenter.from_tokenizer(tokenizer)
    for date in ("1 January", "31 December 2030"):
        batch = segmenter.apply_chat_template([{"role": "user", "content": "Hi"}], date=date)
        assert max(batch["segment_ids"]) == 1
        assert batch["segment_ids"][:2] == [-1, 0]


def test_a_second_round_of_tools_that_a_template_writes_without_header_is_refused():
    """DeepSeek V3's template forgets its own header from the second call on."""
    call = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}
    round_of_tools = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "a shower"},
        {"role": "assistant", "content": "Some."},
    ]
    segmenter = Segmenter.from_tokenizer(load("deepseek_v3"))
    assert max(segmenter.apply_chat_template(round_of_tools)["segment_ids"]) == 1
    with pytest.raises(TemplateError, match=r"message 6 \(tool\) would lie outside every segment"):
        segmenter.apply_chat_template(round_of_tools * 2)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        (UNMARKED, "expected text that tells the two apart"),
        (REFUSING, "refuses a conversation"),
        ("{%- for m in messages -%}>> {{ m.content }}\n{%- endfor -%}", "same token ids"),
    ],
)
def test_templates_that_cannot_be_read_say_what_to_do(smollm2_tokenizer, template, message):
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(TemplateError, match=message) as caught:
        Segmenter.from_tokenizer(tokenizer)
    assert "Segmenter.from_markers" in str(caught.value)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False
        chat_template = "x"

    with pytest.raises(TemplateError, match="expected a fast tokenizer"):
        Segmenter.from_tokenizer(Slow())
