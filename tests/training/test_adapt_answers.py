"""Answers of the teacher: greedy ones against a loop by hand, and the file that keeps them."""

import json

import pytest
import torch

import segattn
from chatml import END, conversation
from cli.tiny_chat import make_model, make_tokenizer
from oracle import loop_mask
from segattn.data import DataError, EncodedPrompt
from segattn.training import lessons as lessons_module
from segattn.training.adapt_settings import AdaptSettings
from segattn.training.lessons import Lesson, answer_lessons
from segattn.training.teacher_answers import AnswerFile, end_tokens, generate_answers, prompt_key

TOKENIZER = make_tokenizer()
MADE = {"model": "tiny", "max_new_tokens": 6}


def prompt(text):
    ids, _, segments = conversation(TOKENIZER, [{"role": "user", "content": text}], generation_prompt=True)
    return EncodedPrompt(ids, segments, [])


PROMPTS = [prompt("a"), prompt("a longer one"), prompt("b?")]


def by_hand(one, rule, length=6):
    """Greedy, token by token, without a cache, on a stock model under the mask of a double loop."""
    model, ids, segments = make_model(), list(one.input_ids), list(one.segment_ids)
    answer = []
    while len(answer) < length and END not in answer:
        mask = loop_mask([segments if rule == "segments" else [-1] * len(ids)])
        with torch.no_grad():
            answer.append(int(model(torch.tensor([ids]), attention_mask=mask).logits[0, -1].argmax()))
        ids, segments = [*ids, answer[-1]], [*segments, -1]
    return answer


def test_a_batch_of_greedy_answers_is_the_one_by_hand_under_either_mask():
    model = segattn.enable(make_model())
    want = {rule: [by_hand(one, rule) for one in PROMPTS] for rule in ("segments", "causal")}
    assert want["segments"] != want["causal"]
    assert generate_answers(model, TOKENIZER, PROMPTS, max_new_tokens=6) == want["segments"]
    with segattn.causal(model):
        assert generate_answers(model, TOKENIZER, PROMPTS, max_new_tokens=6) == want["causal"]


def test_an_answer_ends_at_its_first_end_token_and_keeps_it(monkeypatch):
    model = segattn.enable(make_model())
    assert end_tokens(model, TOKENIZER) == {END}
    width = max(len(one.input_ids) for one in PROMPTS)
    rows = torch.zeros(3, width + 4, dtype=torch.int64)
    rows[:, width:] = torch.tensor([[5, END, END, END], [END, 7, 7, 7], [1, 2, 3, 4]])
    monkeypatch.setattr(type(model), "generate", lambda self, **options: rows)
    answers = generate_answers(model, TOKENIZER, PROMPTS, max_new_tokens=4)
    assert answers == [[5, END], [END], [1, 2, 3, 4]]


def test_sampled_answers_depend_on_their_seed_alone_and_leave_the_random_state():
    model = segattn.enable(make_model())

    def sample(seed):
        return generate_answers(model, TOKENIZER, PROMPTS, max_new_tokens=8, temperature=1.5, seed=seed)

    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = sample(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert sample(1) == first
    assert sample(2) != first


def test_sampled_answers_of_a_run_that_goes_on_are_those_of_an_unbroken_one(tmp_path):
    path = tmp_path / "answers.jsonl"
    whole = answer(AnswerFile(path, MADE), answer_temperature=1.5)
    assert whole != answer(AnswerFile(tmp_path / "greedy.jsonl", MADE))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]))
    assert answer(AnswerFile(path, MADE), answer_temperature=1.5) == whole


def answer(file, progress=lambda *told: None, **options):
    settings = AdaptSettings(**{"answer_batch_size": 2, "max_new_tokens": 6, **options})
    model = segattn.enable(make_model())
    return answer_lessons(model, TOKENIZER, [Lesson(one) for one in PROMPTS], file, settings, progress)


def test_the_teacher_answers_causally_and_its_very_tokens_are_learned(tmp_path):
    told = []
    answered = answer(AnswerFile(tmp_path / "answers.jsonl", MADE), progress=lambda *what: told.append(what))
    for one, lesson in zip(PROMPTS, answered, strict=True):
        want = by_hand(one, "causal")
        assert lesson.row.input_ids == one.input_ids + want
        assert lesson.row.labels == [-100] * len(one.input_ids) + want
        assert lesson.row.segment_ids == one.segment_ids + [-1] * len(want)
    assert told == [("answers", 2, 3), ("answers", 3, 3)]


def test_only_missing_answers_are_generated(tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    whole = answer(AnswerFile(path, MADE))
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    path.write_text("".join(lines[:3]) + lines[3][:20])  # cut off in the middle of the last
    asked = []
    generate = lessons_module.generate_answers
    monkeypatch.setattr(
        lessons_module,
        "generate_answers",
        lambda model, tokenizer, prompts, **options: (
            asked.append(prompts) or generate(model, tokenizer, prompts, **options)
        ),
    )
    assert answer(AnswerFile(path, MADE)) == whole
    assert [len(prompts) for prompts in asked] == [1]
    assert sorted(path.read_text().splitlines()) == sorted("".join(lines).splitlines())


def test_answers_that_were_made_otherwise_are_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    file = AnswerFile(path, MADE)
    file.add(PROMPTS[0], [1, END], "x")
    assert AnswerFile(path, MADE).answers == {prompt_key(PROMPTS[0]): [1, END]}
    with pytest.raises(DataError, match=r"made otherwise \(max_new_tokens: 6 there, 7 now\)"):
        AnswerFile(path, {**MADE, "max_new_tokens": 7})
    path.write_text(json.dumps({"prompt": "x"}) + "\n")
    with pytest.raises(DataError, match="is no file of answers"):
        AnswerFile(path, MADE)


def test_unfinished_answers_are_counted(tmp_path, caplog):
    cut = sum(by_hand(one, "causal", 2)[-1] != END for one in PROMPTS)
    answer(AnswerFile(tmp_path / "answers.jsonl", MADE), max_new_tokens=2)
    assert cut
    assert f"{cut} of 3 answers reached max_new_tokens" in caplog.text
