"""Files, folders and names become samples, or errors that name the place."""

import json

import datasets
import pytest

from segattn.data import DataError, has_split, load_samples


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def completions(*texts):
    return [{"prompt": text, "completion": "c"} for text in texts]


def prompts(samples):
    return [sample.messages[0]["content"] for sample in samples]


def test_a_file_with_blank_lines_gives_task_and_line_numbers(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('\n{"prompt": "a", "completion": "c"}\n\n{"prompt": "b", "completion": "c"}\n')
    samples = load_samples(file)
    assert [(sample.task, sample.id) for sample in samples] == [("mine", "2"), ("mine", "4")]


def test_a_folder_gives_the_asked_split(tmp_path):
    folder = tmp_path / "task"
    write(folder / "train.jsonl", completions("a", "b"))
    write(folder / "validation.jsonl", completions("c"))
    assert prompts(load_samples(folder)) == ["a", "b"]
    dev = load_samples(folder, "dev")
    assert prompts(dev) == ["c"]
    assert dev[0].task == "task"
    assert load_samples(folder / "train.jsonl")[0].task == "task"


def test_a_folder_of_tasks_skips_those_without_the_split(tmp_path):
    write(tmp_path / "b" / "train.jsonl", completions("b"))
    write(tmp_path / "b" / "dev.jsonl", completions("B"))
    write(tmp_path / "a" / "dev.jsonl", completions("A"))
    (tmp_path / "README.md").write_text("words")
    assert [(s.task, s.messages[0]["content"]) for s in load_samples(tmp_path, "dev")] == [("a", "A"), ("b", "B")]
    assert prompts(load_samples(tmp_path, "train")) == ["b"]


def test_a_folder_of_other_files_reads_them_all(tmp_path):
    write(tmp_path / "two.jsonl", completions("2"))
    write(tmp_path / "one.jsonl", completions("1"))
    assert [(s.task, s.messages[0]["content"]) for s in load_samples(tmp_path)] == [("one", "1"), ("two", "2")]


def test_the_choices_of_an_intent_file_include_those_of_the_other_split(tmp_path):
    write(tmp_path / "train.jsonl", [{"text": "t", "intent": intent} for intent in ("a_a", "b", "c")])
    write(tmp_path / "dev.jsonl", [{"text": "t", "intent": "b"}])
    write(tmp_path / "notes.jsonl", completions("x"))
    assert load_samples(tmp_path, "dev")[0].choices == ("a a", "b", "c")
    assert load_samples(tmp_path, "train")[2].choices == ("a a", "b", "c")
    alone = write(tmp_path / "elsewhere" / "some.jsonl", [{"text": "t", "intent": intent} for intent in "xy"])
    assert load_samples(alone)[0].choices == ("x", "y")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ('{"prompt": "a", "completion": "c"}\n{"prompt"\n', r"line 2: not JSON"),
        ('{"prompt": "a", "completion": "c"}\n{"text": "a", "intent": "c"}\n', r"line 2: .*first one was 'prompt and"),
        ('{"prompt": "a", "completion": "c"}\n\n{"prompt": "a", "completion": ""}\n', r"line 3: completion is ''"),
        ("[1]\n", r"line 1: .*expected a JSON object"),
    ],
)
def test_bad_files_name_file_and_line(tmp_path, content, message):
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load_samples(file)
    assert str(file) in str(caught.value)


def test_text_that_is_not_utf8_is_refused(tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_bytes('{"prompt": "ä", "completion": "c"}'.encode("latin-1"))
    with pytest.raises(DataError, match="save the file as UTF-8"):
        load_samples(file)


def test_missing_places_are_refused_without_asking_a_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("asked the hub"))
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *args, **kwargs: pytest.fail("asked the hub"))
    for name in (str(tmp_path / "none.jsonl"), "./none", "data/deep/er", "none.jsonl"):
        with pytest.raises(DataError, match="does not exist"):
            load_samples(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no dev data; expected dev.jsonl or validation.jsonl"):
        load_samples(tmp_path / "empty", "dev")


@pytest.fixture
def hub(monkeypatch):
    """A hub with one data set, and what was asked of it."""
    asked = []

    def load(name, configuration, split):
        asked.append((name, configuration, split))
        return [{"context": "c", "question": f"{split} {n}", "answers": {"text": ["x"]}} for n in range(2)]

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, configuration: ["train", "validation"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_a_hub_id_loads_the_split_it_has(hub):
    samples = load_samples("owner/reading:small", "dev")
    assert hub == [("owner/reading", "small", "validation")]
    assert [(s.task, s.id, s.messages[0]["content"]) for s in samples] == [
        ("reading", "1", "c\n\nvalidation 0"),
        ("reading", "2", "c\n\nvalidation 1"),
    ]


def test_a_hub_that_does_not_answer_is_a_clear_error(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "get_dataset_split_names", refuse)
    with pytest.raises(DataError, match=r"owner/name.*failed: no route.*download the data and pass its path"):
        load_samples("owner/name")


def test_a_hub_data_set_without_the_split_says_what_it_has(monkeypatch):
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *args: ["extra"])
    with pytest.raises(DataError, match=r"no dev split; it has \['extra'\]"):
        load_samples("owner/name", "dev")


def test_which_data_has_a_dev_split_of_its_own(tmp_path, hub):
    write(tmp_path / "tasks" / "a" / "dev.jsonl", completions("A"))
    single = write(tmp_path / "other" / "one.jsonl", completions("1"))
    assert has_split(tmp_path / "tasks", "dev")
    assert not has_split(tmp_path / "tasks", "train")
    assert not has_split(tmp_path / "other", "dev")
    assert not has_split(single, "dev")
    assert has_split("owner/reading", "dev")
