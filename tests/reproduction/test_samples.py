"""What is trained on and what is scored: fixed items, the order of a seed, questions that move."""

import pytest

from segattn.data import DataError
from segattn.reproduction.samples import load_sweep_data
from segattn.reproduction.settings import DataSettings


def test_tasks_items_and_order(data_folder):
    found = load_sweep_data(DataSettings("colors", test_items=3, curve_items=3), data_folder)
    assert len(found.train) == 16
    assert [item.task for item in found.test] == ["sea"] * 3 + ["sky"] * 3
    again = load_sweep_data(DataSettings("colors", test_items=3, curve_items=3), data_folder)
    assert again.test == found.test, "items must not change from run to run"
    assert [item.task for item in found.curve] == ["sea", "sky", "sea"]
    assert set(map(id, found.curve)) <= set(map(id, found.test))
    first, second = found.shuffled(1, None), found.shuffled(2, None)
    assert sorted(map(repr, first)) == sorted(map(repr, second)) == sorted(map(repr, found.train))
    assert first != second
    assert found.shuffled(1, 5) == first[:5]
    only = load_sweep_data(DataSettings("colors", tasks=("sky",)), data_folder)
    assert {item.task for item in only.test} == {"sky"}
    assert {item.task for item in only.train} == {"sky", "sea"}
    with pytest.raises(DataError, match="no test data for lake; it has sea, sky"):
        load_sweep_data(DataSettings("colors", tasks=("lake",)), data_folder)


def test_the_question_moves_and_a_system_message_comes(data_folder):
    settings = DataSettings("reading", question_first=True, system="Read.")
    sample = load_sweep_data(settings, data_folder).train[2]
    assert [message["content"] for message in sample.messages] == ["Read.", "B?\n\nA.\n\nB is 2."]
    plain = load_sweep_data(DataSettings("reading"), data_folder).train[2]
    assert [message["content"] for message in plain.messages] == ["A.\n\nB is 2.\n\nB?"]


def test_a_prompt_of_one_paragraph_has_no_question_to_move(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "hello", "slots": []}')
    with pytest.raises(DataError, match="expected a passage and a question"):
        load_sweep_data(DataSettings(str(file), question_first=True))
