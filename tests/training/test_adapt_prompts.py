"""Prompts as a stream: the rows that are understood, those that are refused, and how much of a stream is read."""

import itertools
import json

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

import segattn
from cli.tiny_chat import make_tokenizer
from segattn.data import DataError, Sample
from segattn.training.adapt_settings import AdaptSettings
from segattn.training.lessons import collect_lessons
from segattn.training.plain_prompts import plain_prompts
from segattn.training.prompts import Prompt, iterate_prompts, shuffled

USER = {"role": "user", "content": "why?"}
ASSISTANT = {"role": "assistant", "content": "so"}


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "messages", "answer"),
    [
        ({"prompt": "why?"}, [USER], None),
        ({"prompt": "why?", "completion": None}, [USER], None),
        ({"prompt": [USER]}, [USER], None),
        ({"messages": [USER]}, [USER], None),
        ({"messages": [USER, ASSISTANT, USER]}, [USER, ASSISTANT, USER], None),
        ({"messages": [USER, ASSISTANT]}, [USER], "so"),
        ({"prompt": "why?", "completion": "so"}, [USER], "so"),
        ({"instruction": "why?", "output": "so"}, [USER], "so"),
        ({"text": "why?", "intent": "ask_why"}, [USER], "ask why"),
    ],
)
def test_rows_with_and_without_an_answer_are_read(tmp_path, row, messages, answer):
    [prompt] = iterate_prompts(write(tmp_path / "rows.jsonl", row))
    assert list(prompt.sample.messages) == messages
    assert (prompt.sample.answer if prompt.answered else None) == answer
    assert prompt.where.endswith("rows.jsonl, line 1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "  "}, "prompt is '  '; expected a text that is not empty"),
        ({"prompt": []}, r"prompt is \[\]"),
        ({"prompt": 3}, "prompt is 3"),
        ({"messages": [{"role": "user", "content": ""}]}, "the prompt is empty"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "message 0 is"),
        ({"messages": []}, "messages"),
        ({"prompt": [ASSISTANT]}, "ends with an assistant message"),
        ({"question": "why?"}, "fit no format"),
        ([], "expected a JSON object"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_its_line(tmp_path, row, message):
    file = write(tmp_path / "rows.jsonl", {"prompt": "fine"}, row)
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: .*{message}"):
        list(iterate_prompts(file))


def test_folders_have_splits(tmp_path):
    write(tmp_path / "train.jsonl", {"prompt": "a"}, {"prompt": "b"})
    write(tmp_path / "dev.jsonl", {"prompt": "c"})
    texts = {
        split: [p.sample.messages[0]["content"] for p in iterate_prompts(tmp_path, split)] for split in ("train", "dev")
    }
    assert texts == {"train": ["a", "b"], "dev": ["c"]}
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        list(iterate_prompts(tmp_path / "none.jsonl"))


def test_a_hub_data_set_is_streamed(monkeypatch):
    """An endless one is read only as far as it is used."""
    read = []

    def load_dataset(name, configuration, *, split, streaming):
        assert (name, configuration, split, streaming) == ("owner/chats", "english", "train", True)
        for number in itertools.count():
            read.append(number)
            yield {"prompt": f"question {number}"}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *name: ["train"])
    lessons = collect("owner/chats:english", steps=3, batch_size=2, held_out=4)
    assert (len(lessons.train), len(lessons.held_out)) == (6, 4)
    assert len(read) == 10
    with pytest.raises(DataError, match="has no dev split"):
        next(iterate_prompts("owner/chats", "dev"))


def collect(source, held_out_prompts=None, **options):
    prompts = iterate_prompts(source) if isinstance(source, str) else source
    settings = AdaptSettings(**{"steps": 2, "batch_size": 2, "held_out": 1, "max_new_tokens": 8, **options})
    segmenter = segattn.Segmenter.from_tokenizer(make_tokenizer(), policy=settings.policy)
    return collect_lessons(prompts, held_out_prompts, segmenter, settings)


def texts(*contents, answer=None):
    """Prompts, each of them its own name."""
    chats = [(({"role": "user", "content": text},), text) for text in contents]
    return [
        Prompt.alone(chat, text) if answer is None else Prompt(Sample(chat, answer), where=text) for chat, text in chats
    ]


def test_a_held_out_prompt_is_never_learned_on():
    lessons = collect(texts("a", "a", "b", "c", "b"))
    assert (len(lessons.held_out), len(lessons.train), lessons.repeated) == (1, 2, 2)
    apart = collect(texts("a", "b", "c"), texts("b"))
    assert (len(apart.train), apart.repeated) == (2, 1)
    assert apart.held_out[0].prompt not in [lesson.prompt for lesson in apart.train]


def test_long_prompts_are_refused_or_left_out_never_cut():
    prompts = texts("x" * 100, "a", "b")
    with pytest.raises(DataError, match=r"^x+ has \d+ tokens, and with its answer up to \d+, over max_length 60"):
        collect(prompts, max_length=60)
    lessons = collect(prompts, max_length=60, too_long="drop")
    assert (len(lessons.held_out), len(lessons.train), lessons.dropped) == (1, 1, 1)


@pytest.mark.parametrize("prompts", [[], texts("a"), texts("a", "a")])
def test_too_few_prompts_are_refused(prompts):
    with pytest.raises(DataError, match=r"to learn on and \d of 1 to keep apart"):
        collect(prompts)


def test_given_answers_are_encoded_as_for_training_and_must_be_there():
    row = collect(texts("a", "b", answer="so"), answers="given").train[0].row
    learned = [label for label in row.labels if label >= 0]
    assert make_tokenizer().decode(learned) == "so<|im_end|>"
    assert row.segment_ids[-len(learned) :] == [-1] * len(learned)
    with pytest.raises(DataError, match="b gives no answer"):
        collect(texts("a", answer="so") + texts("b"), answers="given")


@given(st.lists(st.integers(), max_size=40), st.integers(0, 10), st.integers(0, 5))
def test_mixing_loses_nothing_and_repeats_itself(items, buffer, seed):
    mixed = list(shuffled(items, buffer, seed))
    assert sorted(mixed) == sorted(items)
    assert mixed == list(shuffled(iter(items), buffer, seed))
    if buffer < 2:
        assert mixed == items


def test_mixing_reads_no_more_than_its_buffer_ahead():
    stream = itertools.count()
    assert len(list(itertools.islice(shuffled(stream, 5, 0), 3))) == 3
    assert next(stream) <= 8


def test_the_built_in_prompts_are_many_and_split_by_what_they_are_about():
    train = list(itertools.islice(plain_prompts("train"), 3000))
    dev = list(itertools.islice(plain_prompts("dev"), 1000))
    assert len({str(prompt.sample.messages) for prompt in train}) > 2000
    assert train == list(itertools.islice(plain_prompts("train"), 3000))
    assert train[:50] != list(itertools.islice(plain_prompts("train", seed=1), 50))
    words = {
        split: " ".join(str(p.sample.messages) for p in prompts) for split, prompts in (("train", train), ("dev", dev))
    }
    for word in ("photosynthesis", "Anna", "the Roman Empire"):
        assert word in words["dev"]
        assert word not in words["train"]
    for prompt in train[:200]:
        assert prompt.sample.messages[-1]["role"] == "user"
        assert "{" not in prompt.sample.messages[-1]["content"]
