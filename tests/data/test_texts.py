"""Plain text with spans: characters to tokens, against tokens of one byte each and a real tokenizer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segattn
from cli.tiny_chat import make_tokenizer
from segattn.data import DataError, SpanText, encode_text, load_samples, load_training_samples

TOKENIZER = make_tokenizer()  # one token a byte
END = TOKENIZER.eos_token_id


@st.composite
def texts(draw):
    text = draw(st.text("ab \n", min_size=1, max_size=30))
    borders = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = tuple(zip(borders[::2], borders[1::2], strict=False))
    more = sorted(draw(st.sets(st.integers(0, len(text)), max_size=4)))
    loss = draw(st.none() | st.just(tuple(zip(more[::2], more[1::2], strict=False))))
    return SpanText(text, spans, loss)


@settings(max_examples=200, deadline=None)
@given(texts())
def test_ascii_text_has_the_segments_and_labels_of_its_characters(sample):
    row = encode_text(sample, TOKENIZER)
    size = len(sample.text)
    assert row.input_ids == [*TOKENIZER(sample.text).input_ids, END]
    want = [-1] * size
    for number, (start, end) in enumerate(sample.spans):
        want[start:end] = [number] * (end - start)
    assert row.segment_ids == [*want, -1]
    if sample.loss_spans is None:
        learned = [number == -1 for number in want]
    else:
        learned = [any(start <= place < end for start, end in sample.loss_spans) for place in range(size)]
    learned = [*learned, learned[-1]]
    learned[0] = False
    assert row.labels == [token if on else -100 for token, on in zip(row.input_ids, learned, strict=True)]
    if sample.loss_spans is None:
        segattn.check_labels(torch.tensor(row.segment_ids), torch.tensor(row.labels))
    assert set(encode_text(sample, TOKENIZER, causal=True).segment_ids) == {-1}


def test_a_token_over_a_border_belongs_to_the_side_of_its_last_character(smollm2_tokenizer):
    text = "Name the capital of France. Paris it is."
    border = text.index(" Paris") + 1  # the token is " Paris", with its space
    row = encode_text(SpanText(text, ((0, border),)), smollm2_tokenizer)
    inside = [token for token, number in zip(row.input_ids, row.segment_ids, strict=True) if number == 0]
    assert smollm2_tokenizer.decode(inside) == "Name the capital of France."
    learned = [label for label in row.labels if label != -100]
    assert smollm2_tokenizer.decode(learned) == " Paris it is." + smollm2_tokenizer.eos_token


def test_a_bos_is_causal_and_not_doubled():
    from templates.real_tokenizers import load

    tokenizer = load("llama3_1")
    bos = tokenizer.bos_token_id
    for text in ("a question. An answer", tokenizer.bos_token + "a question. An answer"):
        begin = text.index("a question")
        row = encode_text(SpanText(text, ((begin, begin + 11),)), tokenizer)
        assert row.input_ids.count(bos) == 1
        assert row.segment_ids[:2] == [-1, 0]
        assert row.labels[0] == -100


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": ""}, "text is ''; expected"),
        ({"spans": [[3, 2]]}, r"spans\[0\] is \[3, 2\]; expected 0 <= start < end <= 10"),
        ({"spans": [[0, 4], [3, 5]]}, r"spans\[1\] is \[3, 5\]; expected 4 <= start"),
        ({"spans": [[0, 11]]}, r"<= 10 \("),
        ({"spans": [5]}, r"spans\[0\] is 5; expected \[start, end\]"),
        ({"spans": "0-4"}, "spans is '0-4'; expected a list"),
        ({"loss_spans": [[9, 12]]}, r"loss_spans\[0\] is \[9, 12\]"),
    ],
)
def test_spans_that_cannot_be_are_refused(fields, message):
    with pytest.raises(DataError, match=message):
        SpanText(**{"text": "0123456789", "spans": [], **fields})


def test_a_span_without_a_token_is_refused(smollm2_tokenizer):
    with pytest.raises(DataError, match=r"sample 'x' of 'data': spans\[0\] \[6, 8\] holds no whole token \('wo'\)"):
        encode_text(SpanText("hello world", ((6, 8),), id="x"), smollm2_tokenizer)


def test_rows_with_text_and_spans_are_read_for_training_alone(tmp_path):
    file = tmp_path / "spans.jsonl"
    file.write_text(
        '{"text": "a b", "spans": [[0, 1]], "id": "n"}\n{"text": "c", "spans": [], "loss_spans": [[0, 1]]}\n'
    )
    first, second = load_training_samples(file)
    assert first == SpanText("a b", ((0, 1),), None, "spans", "n")
    assert second == SpanText("c", (), ((0, 1),), "spans", "2")
    with pytest.raises(DataError, match=r"plain text with spans \(sample 'n' of 'spans'\)"):
        load_samples(file)
    file.write_text('{"text": "a b", "spans": [[0, 1]]}\n{"prompt": "c", "completion": "d"}\n')
    with pytest.raises(DataError, match=r"line 2: plain text with spans and other rows stand in one file"):
        load_training_samples(file)
    file.write_text('{"text": "a b", "spans": [[0, 7]]}\n')
    with pytest.raises(DataError, match=r"line 1: spans\[0\]"):
        load_training_samples(file)
