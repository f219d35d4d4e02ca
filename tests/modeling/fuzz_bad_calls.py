"""Calls of an enabled model that must be refused, whatever the family: name -> (error, call(model, segmenter))."""

import torch

from modeling import tiny
from segattn import LabelLeakError, SegmentError, UnsupportedModelError

IDS = tiny.tokens(1, 8)
ROW = torch.tensor([[0, 0, 0, 0, 1, 1, -1, -1]])
ONES = torch.ones(1, 8, dtype=torch.int64)
DOCUMENTS = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])


def ids(segment_ids):
    """A call with these segment ids."""
    return SegmentError, lambda model, _: model(input_ids=IDS, segment_ids=segment_ids)


def given(error=SegmentError, **inputs):
    """A call with good segment ids and these inputs."""
    return error, lambda model, _: model(**{"input_ids": IDS, "segment_ids": ROW, **inputs})


def answered(answer):
    """A call whose segmenter gives these ids."""

    def call(model, segmenter):
        segmenter.answer = answer
        model(input_ids=IDS)

    return SegmentError, call


def continued(past, error=SegmentError, end=8, **inputs):
    """A call on the cache of the first tokens."""

    def call(model, _):
        first = model(input_ids=IDS[:, :past], segment_ids=ROW[:, :past], use_cache=True).past_key_values
        model(**{"input_ids": IDS[:, past:end], "past_key_values": first, **inputs})

    return error, call


def embedded(model, _):
    model(inputs_embeds=model.get_input_embeddings()(IDS))


def interrupted(model, _):
    """Ctrl-C in the last layer that runs."""

    def interrupt(module, args):
        raise KeyboardInterrupt

    *_, last = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    handle = last.register_forward_pre_hook(interrupt)
    try:
        model(input_ids=IDS, segment_ids=ROW)
    finally:
        handle.remove()


def switched(model, _):
    """Another attention implementation after `enable`; switched back for the next case."""
    config = model.config
    enabled = config._attn_implementation
    config._attn_implementation_internal = "eager"
    try:
        model(input_ids=IDS, segment_ids=ROW)
    finally:
        config._attn_implementation_internal = enabled


BAD_CALLS = {
    # Segment ids that are none.
    "float ids": ids(ROW.float()),
    "nan": ids(ROW * float("nan")),
    "bool ids": ids(ROW >= 0),
    "complex ids": ids(ROW.to(torch.complex64)),
    "a list": ids(ROW.tolist()),
    "an array": ids(ROW.numpy()),
    "a name": ids("turns"),
    "a number": ids(0),
    "a scalar": ids(torch.tensor(0)),
    "three axes": ids(ROW[None]),
    "no tokens": ids(ROW[:, :0]),
    "no rows": ids(ROW[:0]),
    "two rows for one": ids(ROW.expand(2, -1)),
    "too long": ids(torch.zeros(1, 9, dtype=torch.int64)),
    "elsewhere": ids(ROW.to("meta")),
    # Segmentations that break the rule.
    "-2": ids(ROW - 1),
    "the smallest integer": ids(torch.full_like(ROW, -(2**63))),
    "a reused id": ids(torch.tensor([[0, 0, 1, 1, 0, 0, -1, -1]])),
    "an id reused after causal tokens": ids(torch.tensor([[7, 7, -1, -1, 7, -1, -1, -1]])),
    # Segmenters that answer so.
    "a segmenter's list": answered(ROW.tolist()),
    "a segmenter's short batch": answered(ROW[:0]),
    "a segmenter's long row": answered(torch.zeros(1, 9, dtype=torch.int64)),
    "embeddings alone": (SegmentError, embedded),
    # Masks and positions.
    "a segment on padding": given(attention_mask=torch.tensor([[0] * 2 + [1] * 6])),
    "a segment on right padding": given(attention_mask=torch.tensor([[1] * 5 + [0] * 3])),
    "a segment in a row of padding": given(attention_mask=0 * ONES),
    "a 4D mask": given(attention_mask=torch.ones(1, 1, 8, 8, dtype=torch.bool)),
    "a 4D additive mask": given(attention_mask=torch.zeros(1, 1, 8, 8)),
    "a 3D mask": given(attention_mask=ONES[None]),
    "a 1D mask": given(attention_mask=ONES[0]),
    "masks by layer type": given(attention_mask={"full_attention": torch.ones(1, 1, 8, 8, dtype=torch.bool)}),
    "packed, with a mask": given(position_ids=DOCUMENTS, attention_mask=ONES, use_cache=False),
    "packed, with a cache": given(position_ids=DOCUMENTS, use_cache=True),
    "a segment across documents": given(position_ids=(DOCUMENTS + 2) % 4, use_cache=False),
    # Labels.
    "leaking labels": given(LabelLeakError, labels=IDS),
    "one leaking label": given(LabelLeakError, labels=torch.tensor([[-100] * 5 + [3] + [-100] * 2])),
    "short labels": given(labels=IDS[:, :5]),
    # Caches.
    "a cut segment": continued(2, segment_ids=ROW),
    "a cut segment, token by token": continued(3, end=4, segment_ids=ROW[:, :4]),
    "missing on a cache": continued(4),
    "too long on a cache": continued(4, end=6, segment_ids=ROW),
    "-2 on a cache": continued(4, segment_ids=torch.tensor([[0, 0, 0, 0, 1, 1, -1, -2]])),
    "an id reused on a cache": continued(4, segment_ids=torch.tensor([[0, 0, 0, 0, 1, 1, 0, 0]])),
    "a segment on padding, on a cache": continued(4, segment_ids=ROW, attention_mask=torch.tensor([[1] * 5 + [0] * 3])),
    # What breaks inside of the pass.
    "no such token": given(IndexError, input_ids=IDS + 1000),
    "an interrupt": (KeyboardInterrupt, interrupted),
    "another backend": (UnsupportedModelError, switched),
    # Found by hand.
    "leaking labels on a cache": continued(4, LabelLeakError, segment_ids=ROW, labels=IDS[:, 4:]),
    "leaking shifted labels": given(LabelLeakError, labels=torch.full_like(IDS, -100), shift_labels=IDS),
    "a short mask": given(attention_mask=ONES[:, :5]),
    "a long mask that pads a segment": given(attention_mask=torch.tensor([[0] * 3 + [1] * 9])),
    "a mask of two rows": given(attention_mask=ONES.expand(2, -1)),
    "a short mask that pads a segment": given(attention_mask=torch.tensor([[0] * 3 + [1] * 4])),
    "a mask of the new tokens only": continued(4, segment_ids=ROW, attention_mask=ONES[:, 4:]),
    "a document of one token": given(position_ids=torch.tensor([[0, 0, 1, 2, 3, 4, 5, 6]]), use_cache=False),
    "a document of one token, with a cache": given(
        segment_ids=torch.tensor([[-1, 0, 0, 0, 1, 1, -1, -1]]),
        position_ids=torch.tensor([[0, 0, 1, 2, 3, 4, 5, 6]]),
        use_cache=True,
    ),
    "a jump inside a segment": given(position_ids=torch.tensor([[0, 1, 9, 10, 11, 12, 13, 14]]), use_cache=False),
    "unsigned ids": ids(torch.full((1, 8), 255, dtype=torch.uint8)),
    "sparse ids": ids(ROW.to_sparse()),
    "labels in a list": given(labels=IDS.tolist()),
    "short positions": given(position_ids=torch.arange(5)[None], use_cache=False),
    "positions of three rows": given(position_ids=torch.arange(8).expand(3, -1), use_cache=False),
}
