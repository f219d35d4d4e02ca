"""Rows become samples, or errors that say what was expected."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segattn.data import DataError, Sample
from segattn.data.formats import FORMATS, complete_intents, format_of, read_row

COMMON = {
    "instruction": "Please choose: which?\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer2",
    "input": "",
    "output": "the correct answer is answer2",
    "answer": "answer2",
}


def read(row):
    return read_row(row, format_of(row), "task", "7")


def user(text):
    return ({"role": "user", "content": text},)


def test_a_chat_learns_all_its_answers():
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"},
        {"role": "assistant", "content": "b"},
    ]
    assert read({"messages": turns}) == Sample(tuple(turns[:-1]), "b", None, "task", "7", "all")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "completion": "c"},
        {"prompt": [{"role": "user", "content": "p"}], "completion": [{"role": "assistant", "content": "c"}]},
    ],
)
def test_prompt_and_completion_as_text_or_messages(row):
    assert read(row) == Sample(user("p"), "c", None, "task", "7", "last")


def test_commonsense_choices_are_the_output_with_each_option():
    sample = read(COMMON)
    assert sample.messages == user(COMMON["instruction"])
    assert sample.choices == ("the correct answer is answer1", "the correct answer is answer2")
    assert sample.answer == "the correct answer is answer2"


def test_an_instruction_without_answer_has_no_choices_and_its_input_follows():
    sample = read({"instruction": "Translate.", "input": "Haus", "output": "house"})
    assert sample == Sample(user("Translate.\nHaus"), "house", None, "task", "7")


def test_intents_are_written_with_spaces_and_share_their_choices():
    samples = [read({"text": "where is my card", "intent": intent}) for intent in ("card_arrival", "lost_card")]
    assert samples[0] == Sample(user("where is my card"), "card arrival", None, "task", "7")
    completed = complete_intents(samples, {"lost card", "card arrival", "other"})
    assert {sample.choices for sample in completed} == {("card arrival", "lost card", "other")}
    assert complete_intents(samples[:1], {"card arrival"})[0].choices is None


@pytest.mark.parametrize("answers", [["x", "y"], {"text": ["x"], "answer_start": [3]}])
def test_reading_takes_the_first_answer(answers):
    sample = read({"title": "t", "context": "c", "question": "q", "answers": answers})
    assert sample == Sample(user("c\n\nq"), "x", None, "task", "7")


def test_a_row_may_carry_choices_task_and_id():
    row = {"prompt": "p", "completion": "b", "choices": ["a", "b"], "task": "mine", "id": 12}
    assert read(row) == Sample(user("p"), "b", ("a", "b"), "mine", "12")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q"}, r"fields \['question'\] fit no format.*prompt, completion"),
        ([1], "list; expected a JSON object"),
        ({"prompt": "", "completion": "c"}, "prompt is ''"),
        ({"prompt": "p", "completion": 3}, "completion is 3"),
        ({"prompt": "p", "completion": [{"role": "user", "content": "c"}]}, "exactly one assistant message"),
        ({"messages": [{"role": "user", "content": "u"}]}, "end with an assistant message"),
        ({"messages": []}, "list of messages"),
        ({"messages": [{"role": "oracle", "content": "u"}, {"role": "assistant", "content": "a"}]}, "message 0.*role"),
        ({"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "a"}]}, "content None"),
        ({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": " "}]}, "the answer is ' '"),
        ({**COMMON, "answer": "answer3"}, "'answer3' must be one of"),
        ({**COMMON, "instruction": "which?"}, "does not end with its options"),
        ({"text": "t", "intent": " "}, "intent is ' '"),
        ({"context": "c", "question": "q", "answers": []}, "answers is"),
        ({"prompt": "p", "completion": "c", "choices": ["a", "b"]}, "'c' is not among the choices"),
        ({"prompt": "p", "completion": "a", "choices": ["a", "a"]}, "at least two, all different"),
    ],
)
def test_bad_rows_say_what_was_expected(row, message):
    with pytest.raises(DataError, match=message):
        read(row)


def test_consecutive_assistant_messages_are_refused():
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "assistant", "user", "assistant")]
    with pytest.raises(DataError, match="messages 1 and 2 are both from the assistant"):
        read({"messages": turns})


def test_another_format_than_the_first_rows_is_refused():
    with pytest.raises(DataError, match="'intent', the first one was 'chat'"):
        read_row({"text": "t", "intent": "i"}, FORMATS[0], "task", "1")


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([f for known in FORMATS for f in known.fields]), st.text(max_size=4)))
def test_any_row_is_read_or_refused_never_broken(row):
    try:
        sample = read(row)
    except DataError:
        return
    assert sample.answer.strip()
    assert sample.messages[-1]["content"]


def test_the_fingerprint_tells_samples_apart():
    samples = [
        Sample(user("p"), "a", ("a", "b")),
        Sample(user("p"), "b", ("a", "b")),
        Sample(user("p"), "a"),
        Sample(user("q"), "a"),
        Sample(user("p"), "a", task="other"),
        Sample(user("p"), "a", id="2"),
    ]
    assert len({sample.fingerprint for sample in samples}) == len(samples)
    assert Sample(user("p"), "a").fingerprint == Sample(user("p"), "a").fingerprint


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
ASKED = {"role": "user", "content": "q"}


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
@pytest.mark.parametrize("fields", ["messages", "prompt"])
def test_tools_and_tool_calls_are_kept(tools, fields):
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    row = {"messages": [ASKED, answer]} if fields == "messages" else {"prompt": [ASKED], "completion": [answer]}
    sample = read_row({**row, "tools": tools}, format_of(row), "t", "1")
    assert sample.tools == (TOOL,)
    assert sample.tool_calls == (CALL,)
    assert sample.conversation == (ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]})
    plain = read_row(
        {"prompt": "q", "completion": "a", "tools": None}, format_of({"prompt": "q", "completion": "a"}), "t", "1"
    )
    assert plain.tools is None
    assert (
        plain.fingerprint
        != read_row(
            {"prompt": "q", "completion": "a", "tools": tools}, format_of({"prompt": "q", "completion": "a"}), "t", "1"
        ).fingerprint
    )


@pytest.mark.parametrize("tools", ["[", 3, ["f"]])
def test_tools_that_are_no_schemas_are_refused(tools):
    with pytest.raises(DataError, match="tools is"):
        read_row(
            {"prompt": "q", "completion": "a", "tools": tools}, format_of({"prompt": "q", "completion": "a"}), "t", "1"
        )
