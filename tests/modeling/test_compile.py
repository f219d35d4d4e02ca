"""Enabled models under torch.compile: one graph for all segmentations of a shape, and wrong ids still raise in it."""

import threading

import pytest
import torch
from torch._dynamo.utils import counters

import segattn
from modeling.test_peft import with_adapter
from modeling.tiny import build as build_three_layers
from modeling.tiny import hand_mask, tokens
from segattn.modeling import forward_pass

IDS = tokens()
ROWS = [[-1] + [4] * 6 + [0] * 5 + [-1] * 2, [0] * 9 + [-1] * 3 + [1] * 2]
OTHER_ROWS = [[0] * 14, [-1] * 5 + [3] * 9]
CAUSAL_ROWS = [[-1] * 14] * 2


def build(name="llama"):
    """Two layers, of both kinds where a family has two: the compiler takes its time for each."""
    kinds = {"layer_types": ["sliding_attention", "full_attention"]} if name == "gemma3" else {}
    return build_three_layers(name, num_hidden_layers=2, **kinds)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


def compiled(name="llama", order="enable first", backend="eager", fullgraph=True, **options):
    model = build(name)
    if order == "compile first":
        return segattn.enable(torch.compile(model, backend=backend, fullgraph=fullgraph, **options))
    return torch.compile(segattn.enable(model), backend=backend, fullgraph=fullgraph, **options)


def oracle(name, rows, ids=IDS):
    stock = build(name)
    with torch.no_grad():
        return stock(ids, attention_mask=hand_mask(stock, rows, "sdpa")).logits


def follows(model, rows, name="llama", ids=IDS, want=None):
    with torch.no_grad():
        got = model(ids, segment_ids=torch.tensor(rows)).logits
    torch.testing.assert_close(got, oracle(name, rows, ids) if want is None else want, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "order", "backend"),
    [
        ("llama", "enable first", "aot_eager"),
        ("llama", "compile first", "eager"),
        ("qwen3", "enable first", "eager"),
        ("qwen3", "compile first", "aot_eager"),
        ("gemma3", "enable first", "eager"),
        ("gemma3", "compile first", "aot_eager"),
    ],
)
def test_one_full_graph_serves_every_segmentation_of_a_shape(name, order, backend):
    assert (oracle(name, ROWS) - oracle(name, OTHER_ROWS)).abs().max() > 1e-2, "the masks must differ in effect"
    model = compiled(name, order, backend)
    follows(model, ROWS, name)
    before = graphs()
    assert before
    with torch.compiler.set_stance("fail_on_recompile"):
        follows(model, OTHER_ROWS, name)
        follows(model, CAUSAL_ROWS, name)
    assert graphs() == before
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="recompile"),
        torch.compiler.set_stance("fail_on_recompile"),
    ):
        model(IDS[:, :9], segment_ids=torch.tensor(ROWS)[:, :9])  # the guard above can fail


def test_lengths_share_a_graph():
    model = compiled(dynamic=True)
    for length in (14, 11):  # the second length may still specialise something
        follows(model, [row[:length] for row in ROWS], ids=IDS[:, :length])
    before = graphs()
    for length in (7, 12, 9):
        follows(model, [row[:length] for row in OTHER_ROWS], ids=IDS[:, :length])
    assert graphs() == before


BAD_VALUES = {
    "below -1": (torch.tensor(ROWS) - 1, r"segment_ids\[0, 0\] is -2"),
    "reused": (torch.tensor([[0] * 3 + [1] * 3 + [0] * 8] * 2), "opens segment 0 again"),
}
BAD_KINDS = {
    "float": (torch.tensor(ROWS).float(), "float32"),
    "too long": (torch.full((2, 15), -1), "covers 15 tokens, but there are only 14"),
    "a list": (ROWS, "segment_ids is a list"),
    "rows": (torch.tensor(ROWS)[:1].repeat(3, 1), "3 rows for a batch of 2"),
    "missing": (None, "segment_ids is missing"),
}


@pytest.mark.parametrize("order", ["enable first", "compile first"])
def test_wrong_ids_raise_from_inside_the_graph(order):
    model = compiled(order=order)
    follows(model, ROWS)
    before = graphs()
    for bad, message in BAD_VALUES.values():
        with torch.no_grad(), pytest.raises(segattn.SegmentError, match=message):
            model(IDS, segment_ids=bad)
        follows(model, ROWS)
    assert graphs() == before
    for bad, message in BAD_KINDS.values():
        with torch.no_grad(), pytest.raises(segattn.SegmentError, match=message):
            model(IDS, segment_ids=bad)
        follows(model, ROWS)


def test_leaking_labels_and_a_prepared_mask_raise_from_inside_the_graph():
    model = compiled()
    with pytest.raises(segattn.LabelLeakError, match="row 0, position 2"):
        model(IDS, segment_ids=torch.tensor(ROWS), labels=IDS)
    with pytest.raises(segattn.SegmentError, match="prepared mask"):
        model(IDS, segment_ids=torch.tensor(ROWS), attention_mask=torch.ones(2, 1, 14, 14, dtype=torch.bool))
    follows(model, ROWS)


class ByFirstToken:
    """A segmenter whose segments depend on the tokens: even and odd first tokens give other rows."""

    def segment_ids(self, input_ids, attention_mask=None):
        return torch.tensor(ROWS if int(input_ids[0, 0]) % 2 else OTHER_ROWS)

    def to_dict(self):
        return {}


def test_a_segmenter_derives_the_ids_where_graphs_may_break():
    model = torch.compile(segattn.enable(build(), ByFirstToken()), backend="eager")
    for first, rows in ((3, ROWS), (4, OTHER_ROWS), (5, ROWS)):
        ids = IDS.clone()
        ids[0, 0] = first
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, oracle("llama", rows, ids), atol=1e-5, rtol=0)


def test_a_full_graph_cannot_derive_ids_and_says_what_to_pass():
    model = torch.compile(segattn.enable(build(), ByFirstToken()), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"pass segment_ids=segmenter\.segment_ids"):
        model(IDS)
    follows(model, ROWS)


def test_the_causal_block_holds_in_its_own_thread_only():
    model = compiled()
    follows(model, ROWS)
    with segattn.causal(model):
        with torch.no_grad():
            for given in ({}, {"segment_ids": torch.tensor(ROWS)}):
                torch.testing.assert_close(model(IDS, **given).logits, oracle("llama", CAUSAL_ROWS), atol=1e-5, rtol=0)
        in_a_thread(lambda: follows(model, ROWS))
    follows(model, ROWS)


def in_a_thread(*calls):
    """Run the calls at the same time, each in a thread; raise what the first of them raised."""
    errors = []

    def run(call):
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def race_of_two():
    """Two threads run a compiled model; each waits at a break of its graph until the other has begun its pass too."""
    barrier = threading.Barrier(2, timeout=60)
    racing = False

    @torch.compiler.disable
    def wait(*args):
        if racing:
            barrier.wait()

    stock = segattn.enable(build())
    # After the pass has begun and before its mask is built.
    stock.get_input_embeddings().register_forward_hook(wait)
    model = torch.compile(stock, backend="eager")
    follows(model, ROWS)  # compiled before the race
    assert graphs() > 1
    racing = True

    def calls(rows, errors):
        want = oracle("llama", rows)

        def call():
            with torch.no_grad():
                for _ in range(3):
                    errors.append((model(IDS, segment_ids=torch.tensor(rows)).logits - want).abs().max())

        return call

    errors = []
    in_a_thread(calls(ROWS, errors), calls(OTHER_ROWS, errors))
    return errors


def test_threads_share_a_compiled_model():
    assert max(race_of_two()) < 1e-5


def test_the_race_shows_a_pass_that_threads_share(monkeypatch):
    class Shared:
        slot = forward_pass._Slot()

    monkeypatch.setattr(forward_pass, "_threads", Shared())
    try:
        wrong = max(race_of_two()) > 1e-2
    except (segattn.UnsupportedModelError, AttributeError):  # the other thread took the pass away
        wrong = True
    assert wrong


def test_gradients_through_the_graph_equal_those_of_a_hand_built_mask():
    labels = IDS.masked_fill(torch.tensor(ROWS) >= 0, -100)
    stock, model = build("gemma3"), compiled("gemma3", backend="aot_eager")
    stock(IDS, attention_mask=hand_mask(stock, ROWS, "sdpa"), labels=labels).loss.backward()
    model(IDS, segment_ids=torch.tensor(ROWS), labels=labels).loss.backward()
    for got, want in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_inside_a_compiled_model():
    labels = IDS.masked_fill(torch.tensor(ROWS) >= 0, -100)
    stock = build()
    stock(IDS, attention_mask=hand_mask(stock, ROWS, "sdpa"), labels=labels).loss.backward()
    model = segattn.enable(build()).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    graph = torch.compile(model, backend="aot_eager")
    graph(IDS, segment_ids=torch.tensor(ROWS), labels=labels, use_cache=False).loss.backward()
    for got, want in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, atol=1e-5, rtol=1e-4)


def test_an_adapter_inside_a_compiled_model():
    stock = with_adapter(build())
    model = torch.compile(segattn.enable(with_adapter(build())), backend="eager", fullgraph=True)
    for rows in (ROWS, OTHER_ROWS):
        with torch.no_grad():
            want = stock(IDS, attention_mask=hand_mask(stock.get_base_model(), rows, "sdpa")).logits
            got = model(input_ids=IDS, segment_ids=torch.tensor(rows)).logits
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert graphs() == 1


def test_an_opening_bias_is_an_input_of_the_graph():
    model, plain = compiled(), segattn.enable(build())
    counts = []
    for bias in (-8.0, -6.0, -4.0, -2.0):  # the first two settle that the number varies
        segattn.modeling.set_opening(model, bias)
        segattn.modeling.set_opening(plain, bias)
        with torch.no_grad():
            got, want = (each(IDS, segment_ids=torch.tensor(ROWS)).logits for each in (model, plain))
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
        counts.append(graphs())
    assert counts[1:] == counts[1:2] * 3
