"""Every cache of transformers, a chat that goes on its cache, prefill in chunks, compiled decoding."""

import pytest
import torch
from transformers import DynamicCache, QuantizedCache, StaticCache, cache_utils
from transformers.generation.configuration_utils import CompileConfig

import segattn
from modeling.generating import (
    GREEDY,
    OLD,
    PADDED_REALS,
    PADDED_ROWS,
    ROWS,
    WINDOWED,
    assert_same,
    build,
    generate,
    generate_by_hand,
)
from modeling.tiny import hand_mask, tokens

CACHES = {
    "none": lambda config: {"use_cache": False},
    "dynamic": lambda config: {"cache_implementation": "dynamic"},
    "dynamic object": lambda config: {"past_key_values": DynamicCache(config=config)},
    "dynamic object without a config": lambda config: {"past_key_values": DynamicCache()},
    "hybrid": lambda config: {"cache_implementation": "hybrid"},
    "static": lambda config: {"cache_implementation": "static"},
    "static object": lambda config: {"past_key_values": StaticCache(config=config, max_cache_len=40)},
}


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("name", WINDOWED)
def test_every_cache_gives_the_same_tokens(name, cache):
    """The prompt is longer than the windows."""
    want = generate_by_hand(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY)
    options = {**GREEDY, **cache(build(name).config)}
    assert_same(generate(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **options), want)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("name", WINDOWED)
def test_searches_on_a_static_cache(name, options):
    options = {**GREEDY, **options}
    torch.manual_seed(3)
    want = generate_by_hand(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **options)
    torch.manual_seed(3)
    got = generate(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, cache_implementation="static", **options)
    assert_same(got, want)


class _NoStream:
    """Stands in for a device's stream, which a machine without an accelerator has not."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def wait_stream(self, other):
        return None


@pytest.mark.parametrize("implementation", ["offloaded", "offloaded_static"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_offloaded_caches(name, implementation, monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch, "Stream", _NoStream)
        monkeypatch.setattr(torch.cuda, "default_stream", lambda device: _NoStream())
    want = generate_by_hand(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY)
    options = {**GREEDY, "cache_implementation": implementation}
    assert_same(generate(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **options), want)


def test_a_quantized_cache_that_loses_nothing(monkeypatch):
    class Lossless(cache_utils.QuantizedLayer):
        def __init__(self, *args, **kwargs):
            super().__init__(residual_length=3)

        def _quantize(self, tensor, axis):
            return tensor.clone()

        def _dequantize(self, tensor):
            return tensor

    monkeypatch.setattr(cache_utils, "QuantoQuantizedLayer", Lossless)
    want = generate_by_hand("llama", "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY)
    options = {**GREEDY, "cache_implementation": "quantized", "cache_config": {"backend": "quanto"}}
    assert_same(generate("llama", "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **options), want)


@pytest.mark.skipif(OLD, reason="this transformers release has no fp8 cache")
def test_a_quantized_cache_loses_what_it_loses_in_a_stock_model():
    model, ids = build(), tokens()
    cache = QuantizedCache(backend="fp8", config=model.config)
    with torch.no_grad():
        step = model(ids, attention_mask=hand_mask(model, ROWS, "sdpa"), past_key_values=cache)
        logits = [step.logits[:, -1]]
        for _ in range(7):
            step = model(logits[-1].argmax(-1)[:, None], past_key_values=cache)
            logits.append(step.logits[:, -1])
    options = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    got = generate("llama", "sdpa", ids, ROWS, **options, **GREEDY)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(logits), atol=1e-5, rtol=0)


FIRST_ROWS, FIRST_REALS = [[-1] + [0] * 7 + [-1] * 2, [-1] * 3 + [0] * 3 + [1] * 4], [[1] * 10, [0] * 3 + [1] * 7]


@pytest.mark.parametrize("only_new", [False, True], ids=["whole chat", "new tokens"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", WINDOWED)
def test_a_chat_continues_on_its_cache_with_a_new_user_turn(name, kind, only_new):
    model, first = segattn.enable(build(name)), tokens(2, 10, 1)
    dynamic = kind == "dynamic"
    cache = DynamicCache(config=model.config) if dynamic else StaticCache(config=model.config, max_cache_len=48)
    ids, rows, reals = first, FIRST_ROWS, FIRST_REALS
    for turn in range(2):
        new = ids[:, cache.get_seq_length() :] if only_new else ids
        got = model.generate(
            new,
            attention_mask=torch.tensor(reals),
            segment_ids=torch.tensor(rows),
            past_key_values=cache,
            **{**GREEDY, "max_new_tokens": 6},
        )
        want = generate_by_hand(name, "sdpa", ids, rows, reals, **{**GREEDY, "max_new_tokens": 6})
        got.sequences = torch.cat([ids[:, : ids.shape[1] - new.shape[1]], got.sequences], 1)
        assert_same(got, want)
        # The answer's last token is not in the cache yet; then a new user turn comes.
        ids = torch.cat([want.sequences, tokens(2, 6, 2 + turn)], 1)
        rows = [row + [-1] * 6 + [8 + turn] * 5 + [-1] for row in rows]
        reals = [real + [1] * 12 for real in reals]


@pytest.mark.parametrize("new", [5, 1])
@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_a_cache_that_ends_inside_a_segment_is_refused(kind, new):
    model = segattn.enable(build())
    cache = DynamicCache() if kind is DynamicCache else StaticCache(config=model.config, max_cache_len=40)
    first = model.generate(tokens(1, 6), segment_ids=torch.tensor([[0] * 6]), past_key_values=cache, **GREEDY)
    assert cache.get_seq_length() == 13
    both = torch.cat([first.sequences[:, :13], tokens(1, new)], 1)
    row = torch.tensor([[0] * 6 + [-1] * 6 + [1] * (1 + new)])
    with pytest.raises(segattn.SegmentError, match="row 0: segment 1 lies on both sides of position 13"):
        model.generate(both, segment_ids=row, past_key_values=cache, **GREEDY)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_what_a_prepared_mask_hides_is_checked_before(cache):
    model, options = segattn.enable(build()), {"cache_implementation": cache, **GREEDY}
    padded = {"attention_mask": torch.tensor([[0] * 4 + [1] * 10]), "segment_ids": torch.tensor([[0] * 12 + [-1] * 2])}
    with pytest.raises(segattn.SegmentError, match=r"segment_ids\[0, 0\] is 0 on a padding token"):
        model.generate(tokens(1), **padded, **options)
    packed = {"position_ids": torch.tensor([[*range(6), *range(8)]]), "segment_ids": torch.tensor([[0] * 6 + [1] * 8])}
    with pytest.raises(segattn.SegmentError, match="position_ids restart inside a row"):
        model.generate(tokens(1), **packed, **options)


@pytest.mark.parametrize(
    ("name", "backend", "options", "calls"),
    [("llama", "aot_eager", {}, 1), ("gemma3", "eager", {"prefill_chunk_size": 7}, 1)],
    ids=["decoding", "after chunks"],
)
def test_compiled_decoding(name, backend, options, calls):
    torch._dynamo.reset()
    config = CompileConfig(fullgraph=True, backend=backend, mode=None)
    config._compile_all_devices = True
    want = generate_by_hand(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY)
    model, compiled = segattn.enable(build(name)), []
    stock = model.get_compiled_call
    model.get_compiled_call = lambda given: compiled.append(given) or stock(given)
    got = model.generate(
        tokens(),
        attention_mask=torch.tensor(PADDED_REALS),
        segment_ids=torch.tensor(PADDED_ROWS),
        cache_implementation="static",
        compile_config=config,
        **options,
        **GREEDY,
    )
    assert_same(got, want)
    assert len(compiled) == calls
