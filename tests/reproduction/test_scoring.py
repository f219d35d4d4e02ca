"""Scores of a task, against the same items one by one on a stock model under a hand-made mask."""

import pytest
import torch

import chatml
import segattn
from cli.tiny_chat import make_model, make_tokenizer
from oracle import loop_mask
from segattn.data import load_samples
from segattn.reproduction.answers import is_right
from segattn.reproduction.scoring import evaluate_task, scorings_of

TOKENIZER = make_tokenizer()
SEGMENTER = segattn.Segmenter.from_tokenizer(TOKENIZER)


def by_hand(item, attention, new):
    """Greedy text and loss of the right answer, a whole pass for each token."""
    stock = make_model()
    ids, _, row = chatml.conversation(TOKENIZER, item.messages, generation_prompt=True)
    row = row if attention == "segments" else [-1] * len(row)

    def logits(tokens):
        mask = loop_mask([row + [-1] * (len(tokens) - len(row))])
        with torch.no_grad():
            return stock(torch.tensor([tokens]), attention_mask=mask).logits[0]

    tokens = list(ids)
    for _ in range(new):
        tokens.append(int(logits(tokens)[-1].argmax()))
        if tokens[-1] == chatml.END:
            break
    answer = [*TOKENIZER(item.answer, add_special_tokens=False).input_ids, chatml.END]
    whole = logits([*ids, *answer]).log_softmax(-1)
    loss = -sum(float(whole[len(ids) - 1 + place, token]) for place, token in enumerate(answer)) / len(answer)
    return TOKENIZER.decode(tokens[len(ids) :], skip_special_tokens=True), loss


@pytest.mark.parametrize("attention", ["segments", "causal"])
@pytest.mark.parametrize("task", ["colors/sky", "reading"])
def test_generation_and_losses(data_folder, task, attention):
    items = load_samples(data_folder / task, "dev")
    model = segattn.enable(make_model(), SEGMENTER)
    found = evaluate_task(
        model, SEGMENTER, items, attention=attention, scoring="generation", batch_size=2, max_new_tokens=5
    )
    texts, losses = zip(*(by_hand(item, attention, 5) for item in items), strict=True)
    assert found["correct"] == [int(is_right(text, item)) for text, item in zip(texts, items, strict=True)]
    assert found["ids"] == [item.id for item in items]
    assert found["lengths"] == [
        len(chatml.conversation(TOKENIZER, i.messages, generation_prompt=True)[0]) for i in items
    ]
    if task == "reading":
        assert found["losses"] == pytest.approx(losses, abs=1e-4)
        assert found["chance"] is None
    else:
        assert found["losses"] is None
        assert found["chance"] == pytest.approx(1 / 3)
        ranked = evaluate_task(
            model, SEGMENTER, items, attention=attention, scoring="likelihood", batch_size=2, max_new_tokens=5
        )
        assert ranked["losses"] == pytest.approx(losses, abs=1e-4)


def test_a_right_answer_is_seen(data_folder, monkeypatch):
    """The texts of an untrained model are all wrong: here each prompt is answered with the next one's answer."""
    items = load_samples(data_folder / "reading", "dev")
    texts = {str(item.messages): item.answer for item in items}
    model = segattn.enable(make_model(), SEGMENTER)

    def answers(model, tokenizer, prompts, **options):
        found = []
        for prompt in prompts:
            text = tokenizer.decode(prompt.input_ids)
            item = next(item for item in items if item.messages[0]["content"] in text)
            wrong = item.id == items[1].id
            found.append(tokenizer("nothing" if wrong else texts[str(item.messages)]).input_ids)
        return found

    monkeypatch.setattr("segattn.reproduction.scoring.generate_answers", answers)
    found = evaluate_task(
        model, SEGMENTER, items, attention="causal", scoring="generation", batch_size=2, max_new_tokens=5
    )
    assert found["correct"] == [1, 0, 1]


def test_items_without_choices_are_answered(data_folder):
    colors, reading = (load_samples(data_folder / name, "dev") for name in ("colors", "reading"))
    assert scorings_of(colors, ("likelihood", "generation")) == ["likelihood", "generation"]
    assert scorings_of(reading, ("likelihood",)) == ["generation"]
