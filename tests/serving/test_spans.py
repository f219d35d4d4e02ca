import pytest

from cli.tiny_chat import make_tokenizer
from segattn import Segmenter, SegmentError
from segattn.serving.spans import OVERRIDE, spans_of

IDS = list(range(40))


class Fixed:
    """A segmenter that knows the answer."""

    def spans(self, ids):
        assert list(ids) == IDS
        return [(0, 5), (5, 9)]


def test_without_an_override_the_checkpoint_decides():
    assert spans_of(IDS, None, Fixed()) == ((0, 5), (5, 9))
    assert spans_of(IDS, {"session_id": "a"}, Fixed()) == ((0, 5), (5, 9))
    assert spans_of(IDS, {OVERRIDE: "segments"}, Fixed()) == ((0, 5), (5, 9))
    assert spans_of(IDS, {}, None) == ()


def test_a_request_can_be_causal_or_give_its_own_spans():
    assert spans_of(IDS, {OVERRIDE: "causal"}, Fixed()) == ()
    assert spans_of(IDS, {OVERRIDE: []}, Fixed()) == ()
    assert spans_of(IDS, {OVERRIDE: [2, 4, 10, 40]}, Fixed()) == ((2, 4), (10, 40))
    assert spans_of(IDS, {OVERRIDE: [2, 4]}, None) == ((2, 4),)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("prefix", "'prefix'"),
        (3, "flat list"),
        ([1], "odd"),
        ([0, 3.5], r"3\.5"),
        ([0, "4"], "'4'"),
        ([0, True], "True"),
        ([5, 5], r"\(5, 5\)"),
        ([0, 41], "row of 40 tokens"),
        ([-1, 4], r"\(-1, 4\)"),
        ([0, 8, 4, 10], "disjoint"),
        ([8, 10, 0, 4], "ascending"),
        ([[0, 4]], r"\[0, 4\]"),
        ({"spans": [0, 4]}, "flat list"),
        (None, "flat list"),
    ],
)
def test_a_malformed_override_says_what_is_wrong(given, expected):
    with pytest.raises(SegmentError, match=expected):
        spans_of(IDS, {OVERRIDE: given}, Fixed())


def test_segments_asked_of_a_causal_model_are_refused():
    with pytest.raises(SegmentError, match="not tuned with segments"):
        spans_of(IDS, {OVERRIDE: "segments"}, None)


@pytest.mark.parametrize("name", ["segment_attn", "segments", "Segment-Attention", "segment_spans"])
def test_a_misspelt_override_is_not_ignored(name):
    with pytest.raises(SegmentError, match=name):
        spans_of(IDS, {name: "causal"}, Fixed())


def test_a_real_segmenter_gives_the_segments_of_the_chat():
    tokenizer = make_tokenizer()
    segmenter = Segmenter.from_tokenizer(tokenizer)
    pieces = [
        "<|im_start|>system\nBe brief.<|im_end|>\n",
        "<|im_start|>user\nHi<|im_end|>\n",
        "<|im_start|>assistant\n",
    ]
    lengths = [len(tokenizer(piece).input_ids) for piece in pieces]
    ids = tokenizer("".join(pieces)).input_ids
    assert spans_of(ids, None, segmenter) == ((0, lengths[0]), (lengths[0], lengths[0] + lengths[1]))
