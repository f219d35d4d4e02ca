"""Threads that share one enabled model, and interrupts: no pass sees the segments of another, none is left behind."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LlamaForCausalLM

import segattn
from modeling.test_peft import with_adapter
from modeling.tiny import build, hand_mask, tokens
from segattn.modeling import forward_pass

IDS = tokens(1)
ROWS = [
    [-1] + [4] * 6 + [0] * 5 + [-1] * 2,
    [0] * 9 + [-1] * 3 + [1] * 2,
    [0] * 14,
    [-1] * 14,
    [-1] * 5 + [3] * 9,
    [0] * 7 + [1] * 7,
    [2] * 3 + [-1] * 8 + [0] * 3,
    [0] * 12 + [-1] * 2,
]
GREEDY = {"do_sample": False, "max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(autouse=True)
def _no_pass_left_to_the_tests_that_follow():
    yield
    forward_pass._threads.slot.current = None


def forward(model, row, **inputs):
    with torch.no_grad():  # the switch is per thread too
        return model(IDS, segment_ids=torch.tensor([row]), **inputs).logits


def oracle(row):
    stock = build()
    with torch.no_grad():
        return stock(IDS, attention_mask=hand_mask(stock, [row], "sdpa")).logits


def generate(model, row):
    """The logits of every step: two segmentations may well give the same tokens."""
    segment_ids = torch.tensor([row])
    output = model.generate(IDS, attention_mask=torch.ones_like(IDS), segment_ids=segment_ids, **GREEDY)
    return torch.stack(output.logits)


def at_once(work, rows):
    """Run `work(row)` in one thread for each row, all at the same time; return the results in order."""
    with ThreadPoolExecutor(len(rows)) as pool:
        return list(pool.map(work, rows))


def follows(model, row=ROWS[0]):
    torch.testing.assert_close(forward(model, row), oracle(row), atol=1e-5, rtol=0)


@pytest.mark.parametrize("threads", [2, 8])
def test_threads_that_share_a_model_get_what_each_would_get_alone(threads):
    model, rows = segattn.enable(build()), ROWS[:threads]
    logits = [oracle(row) for row in rows]
    steps = [generate(model, row) for row in rows]
    assert (logits[0] - logits[1]).abs().max() > 1e-2
    assert (steps[0] - steps[1]).abs().max() > 1e-2

    def work(row):
        return [(forward(model, row), generate(model, row)) for _ in range(8)]

    for row, results in enumerate(at_once(work, rows)):
        for got_logits, got_steps in results:
            torch.testing.assert_close(got_logits, logits[row], atol=1e-5, rtol=0)
            torch.testing.assert_close(got_steps, steps[row], atol=1e-5, rtol=0)


def overlapping(model, threads=2):
    """Make threads wait for each other in the middle of every pass, after its start and before its mask is built."""
    barrier = threading.Barrier(threads, timeout=20)

    def wait(*args):
        barrier.wait()

    model.get_input_embeddings().register_forward_hook(wait)
    return model


def race(threads=2):
    """The errors of passes that overlap."""
    model, rows = overlapping(segattn.enable(build()), threads), ROWS[:threads]
    return [
        (got - oracle(row)).abs().max()
        for got, row in zip(at_once(lambda r: forward(model, r), rows), rows, strict=True)
    ]


@pytest.mark.parametrize("threads", [2, 8])
def test_passes_that_overlap_do_not_see_each_others_segments(threads):
    assert max(race(threads)) < 1e-5


def test_the_race_shows_a_pass_that_threads_share(monkeypatch):
    class Shared:
        slot = forward_pass._Slot()

    monkeypatch.setattr(forward_pass, "_threads", Shared())
    try:
        wrong = max(race()) > 1e-2
    except (segattn.UnsupportedModelError, AttributeError):  # the other thread took the pass away
        wrong = True
    assert wrong


def test_generations_that_overlap_step_by_step():
    model = segattn.enable(build())
    want = [generate(model, row) for row in ROWS[:2]]
    overlapping(model)
    for got, steps in zip(at_once(lambda row: generate(model, row), ROWS[:2]), want, strict=True):
        torch.testing.assert_close(got, steps, atol=1e-5, rtol=0)


def test_the_causal_block_and_the_backbone_in_other_threads():
    model = segattn.enable(build())
    inside, done = threading.Event(), threading.Event()

    def causally(_):
        with segattn.causal(model):
            inside.set()
            assert done.wait(60)
            return forward(model, ROWS[0])

    def with_segments(_):
        assert inside.wait(60)
        try:
            with torch.no_grad():
                hidden = model.model(IDS, segment_ids=torch.tensor([ROWS[0]])).last_hidden_state
                return forward(model, ROWS[0]), model.lm_head(hidden)
        finally:
            done.set()

    with ThreadPoolExecutor(2) as pool:
        causal, segments = pool.submit(causally, 0), pool.submit(with_segments, 0)
        torch.testing.assert_close(causal.result(), oracle(ROWS[3]), atol=1e-5, rtol=0)
        for got in segments.result():
            torch.testing.assert_close(got, oracle(ROWS[0]), atol=1e-5, rtol=0)


def test_causal_blocks_nest_and_end_in_any_order():
    model, other = segattn.enable(build()), segattn.enable(build("qwen3"))
    outer, inner, of_other = segattn.causal(model), segattn.causal(model), segattn.causal(other)
    for block in (outer, of_other, inner):
        block.__enter__()
    outer.__exit__(None, None, None)
    torch.testing.assert_close(forward(model, ROWS[0]), oracle(ROWS[3]), atol=1e-5, rtol=0)
    inner.__exit__(None, None, None)
    follows(model)
    of_other.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="stop"), segattn.causal(model):
        raise RuntimeError("stop")
    follows(model)
    assert forward_pass._threads.slot.causal == ()


def raising(error):
    def hook(*args):
        raise error

    return hook


CALLS = {
    "model": lambda model, row: model(IDS, segment_ids=torch.tensor([row])),
    "backbone": lambda model, row: model.model(IDS, segment_ids=torch.tensor([row])),
    "forward": lambda model, row: model.forward(IDS, segment_ids=torch.tensor([row])),
    "generate": generate,
}


@pytest.mark.parametrize("error", [ValueError("in a layer"), KeyboardInterrupt("in a layer"), SystemExit("in a layer")])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_raised_inside_a_layer_leaves_no_pass_behind(call, error):
    model = segattn.enable(build())
    handle = model.model.layers[1].register_forward_hook(raising(error))
    with pytest.raises(type(error), match="in a layer"):
        call(model, ROWS[1])
    handle.remove()
    follows(model)
    # A stale pass would serve here in place of the ids that are missing.
    for bare in (lambda: model(IDS), lambda: model.model(IDS), lambda: model.forward(IDS), lambda: model.generate(IDS)):
        with pytest.raises(segattn.SegmentError, match=r"segment_ids is missing|got no segment_ids"):
            bare()
    follows(model)
    assert forward_pass.current() is None


@pytest.mark.parametrize("place", ["model", "backbone"])
def test_an_interrupt_in_a_hook_beside_ours(place):
    """Ctrl-C may come after our hook began the pass and before the module's own code runs."""
    model = segattn.enable(build())
    module = model if place == "model" else model.model
    handle = module.register_forward_pre_hook(raising(KeyboardInterrupt("in a hook")))
    with pytest.raises(KeyboardInterrupt, match="in a hook"):
        module(IDS, segment_ids=torch.tensor([ROWS[1]]))
    handle.remove()
    follows(model)
    handle = module.register_forward_pre_hook(raising(KeyboardInterrupt("in a hook")))
    with pytest.raises(KeyboardInterrupt, match="in a hook"):
        module(IDS, segment_ids=torch.tensor([ROWS[1]]))
    handle.remove()
    # Adapters call `forward` itself, past the hooks.
    with torch.no_grad():
        got = model.forward(IDS, segment_ids=torch.tensor([ROWS[0]])).logits
    torch.testing.assert_close(got, oracle(ROWS[0]), atol=1e-5, rtol=0)


def test_an_interrupt_inside_an_adapter():
    model = segattn.enable(with_adapter(build()))
    want = forward(model, ROWS[0])
    layer = model.get_base_model().model.layers[1]
    handle = layer.register_forward_hook(raising(KeyboardInterrupt("in a layer")))
    with pytest.raises(KeyboardInterrupt, match="in a layer"):
        forward(model, ROWS[1])
    handle.remove()
    assert torch.equal(forward(model, ROWS[0]), want)


def test_an_interrupted_model_does_not_disturb_another():
    model, other = segattn.enable(build()), segattn.enable(build())
    model.model.layers[1].register_forward_hook(raising(KeyboardInterrupt("in a layer")))
    with pytest.raises(KeyboardInterrupt, match="in a layer"):
        model.model(IDS, segment_ids=torch.tensor([ROWS[1]]))
    follows(other)
    segattn.disable(other)
    with torch.no_grad():
        assert torch.equal(other(IDS).logits, oracle(ROWS[3]))


def _of_the_same_config(model):
    """A stock model that names our mask function, as the frozen reference of a preference trainer does."""
    config = copy.deepcopy(model.config)
    config._attn_implementation_internal = model.config._attn_implementation
    return LlamaForCausalLM(config).eval()


def test_no_other_model_takes_an_interrupted_one_s_segments():
    model = segattn.enable(build())
    other = _of_the_same_config(model)
    model.model.layers[1].register_forward_hook(raising(KeyboardInterrupt("in a layer")))
    with pytest.raises(KeyboardInterrupt):
        model.model(IDS, segment_ids=torch.tensor([ROWS[1]]))
    with pytest.raises(segattn.UnsupportedModelError, match="outside of the enabled model"):
        other(IDS)


def test_no_other_model_takes_the_segments_of_the_pass_it_runs_in():
    model = segattn.enable(build())
    other = _of_the_same_config(model)
    model.model.layers[0].register_forward_hook(lambda *args: other(IDS) and None)
    with pytest.raises(segattn.UnsupportedModelError, match="outside of the enabled model"):
        forward(model, ROWS[0])


def test_a_model_that_runs_inside_another_ones_pass():
    """As a reward model or a draft may: each follows its own segments."""
    model, inner = segattn.enable(build()), segattn.enable(build())
    seen = []
    model.model.layers[0].register_forward_hook(lambda *args: seen.append(forward(inner, ROWS[1])) and None)
    torch.testing.assert_close(forward(model, ROWS[0]), oracle(ROWS[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0], oracle(ROWS[1]), atol=1e-5, rtol=0)
