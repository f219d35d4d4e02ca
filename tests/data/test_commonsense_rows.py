"""Rows of the hub's data sets become the instructions that LLM-Adapters published: its own files are the oracle."""

import json
import re
from pathlib import Path

import pytest

from segattn.data import DataError, load_samples
from segattn.data.formats import format_of, read_row

SHARED = Path(__file__).parents[3] / "shared" / "data" / "commonsense"

LETTERS = {"labels": ["A", "B", "C", "D", "E"]}


def _options(text, noun):
    """The texts after "Noun1:", "Noun2:", ... up to the format line."""
    listed = text.rsplit("Answer format:", 1)[0]
    places = [match.end() for match in re.finditer(rf"{noun}\d: ", listed)]
    starts = [match.start() for match in re.finditer(rf"{noun}\d: ", listed)]
    return [listed[place:end].strip() for place, end in zip(places, [*starts[1:], len(listed)], strict=True)]


def _boolq(text, answer):
    return {
        "question": text.split("question: ", 1)[1].split("?\n\nAnswer")[0],
        "answer": answer == "true",
        "passage": "not shown",
    }


def _piqa(text, answer):
    first, second = _options(text, "Solution")
    goal = text.split("question: ", 1)[1].split("\n\nSolution1")[0]
    return {"goal": goal, "sol1": first, "sol2": second, "label": int(answer[-1]) - 1}


def _social(text, answer):
    options = _options(text, "Answer")
    whole = text.split("question: ", 1)[1].split("\n\nAnswer1")[0]
    context, _, question = whole.partition(" ")
    texts = {f"answer{name}": option for name, option in zip("ABC", options, strict=True)}
    return {"context": context, "question": question, **texts, "label": answer[-1]}


def _winogrande(text, answer):
    first, second = _options(text, "Option")
    sentence = text.split("sentence: ", 1)[1].split("\n\nOption1")[0]
    return {"sentence": sentence, "option1": first, "option2": second, "answer": answer[-1]}


def _choices(field):
    def row(text, answer):
        options = _options(text, "Answer")
        labels = LETTERS["labels"][: len(options)]
        question = text.split("question: ", 1)[1].split("\n\nAnswer1")[0]
        return {
            field: question,
            "choices": {"text": options, "label": labels},
            "answerKey": labels[int(answer[-1]) - 1],
        }

    return row


BACK = {
    "boolq": _boolq,
    "piqa": _piqa,
    "social_i_qa": _social,
    "winogrande": _winogrande,
    "ARC-Easy": _choices("question"),
    "ARC-Challenge": _choices("question"),
    "openbookqa": _choices("question_stem"),
}


@pytest.mark.parametrize("task", BACK)
def test_published_instructions_come_back(task):
    """From the published text to the data set's own fields, and with the code under test back again."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not here")
    compared = 0
    for line in (SHARED / task / "dev.jsonl").read_text(encoding="utf-8").splitlines()[:400]:
        published = json.loads(line)
        try:
            row = BACK[task](published["instruction"], published["answer"])
        except ValueError:
            continue  # an option whose text looks like the beginning of another one
        sample = read_row(row, format_of(row), task, "1")
        got = sample.messages[0]["content"]
        # Some published options begin or end with white space, which the way back cannot see.
        assert re.sub(r"\s+", " ", got) == re.sub(r"\s+", " ", published["instruction"])
        assert sample.answer == published["output"]
        compared += 1
    assert compared > 200


def test_hellaswag():
    row = {"activity_label": "Baking", "ctx": "A man stirs. He", "endings": ["eats.", "runs."], "label": "1"}
    sample = read_row(row, format_of(row), "hellaswag", "1")
    assert sample.messages[0]["content"] == (
        "Please choose the correct ending to complete the given sentence: Baking: A man stirs. He\n\n"
        "Ending1: eats. Ending2: runs.\n\nAnswer format: ending1/ending2"
    )
    assert sample.answer == "the correct answer is ending2"
    assert sample.choices == ("the correct answer is ending1", "the correct answer is ending2")


@pytest.mark.parametrize(
    "row",
    [
        {"goal": "g", "sol1": "a", "sol2": "b", "label": -1},
        {"activity_label": "x", "ctx": "c", "endings": ["a", "b"], "label": ""},
        {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"},
        {"question": "q", "choices": {"text": ["a", "b"]}, "answerKey": "A"},
        {"sentence": "_", "option1": "a", "option2": "b", "answer": ""},
    ],
)
def test_rows_without_a_right_option_are_refused(row):
    with pytest.raises(DataError, match=r"right option|answerKey"):
        read_row(row, format_of(row), "task", "1")


def test_llm_adapters_folders_are_read(tmp_path):
    rows = [
        {"instruction": "Is it?\n\nAnswer format: true/false", "input": "", "output": f"it is {word}", "answer": word}
        for word in ("true", "false")
    ]
    for task in ("boolq", "piqa"):
        (tmp_path / task).mkdir()
        (tmp_path / task / "train.json").write_text(json.dumps(rows))
        (tmp_path / task / "test.json").write_text(json.dumps(rows[:1]))
    assert [(s.task, s.answer) for s in load_samples(tmp_path, "dev")] == [
        ("boolq", "it is true"),
        ("piqa", "it is true"),
    ]
    assert len(load_samples(tmp_path, "train")) == 4
    assert len(load_samples(tmp_path / "boolq" / "train.json")) == 2
    (tmp_path / "piqa" / "train.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="holds a dict; expected a JSON list"):
        load_samples(tmp_path, "train")


def test_slots(tmp_path):
    rows = [
        {"text": "two of us", "requested": ["people"], "slots": [{"slot": "people", "value": "two"}]},
        {"text": "hello", "requested": [], "slots": []},
        {"text": "Ann, 5pm", "slots": [{"slot": "first_name", "value": "Ann"}, {"slot": "time", "value": "5pm"}]},
    ]
    file = tmp_path / "slots.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [(sample.messages[0]["content"], sample.answer) for sample in load_samples(file)]
    assert found == [
        ("two of us\n\nAsked for: people", "people: two"),
        ("hello", "none"),
        ("Ann, 5pm", "first_name: Ann; time: 5pm"),
    ]
    file.write_text(json.dumps({"text": "x", "slots": ["people"]}))
    with pytest.raises(DataError, match="objects with slot and value"):
        load_samples(file)
