"""A prefill in chunks that cut no segment, against transformers' loop under a hand-built mask without any cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AttentionMaskInterface,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    StaticCache,
    cache_utils,
)

import segattn
from families import tiny_models
from modeling.generating import GREEDY, PADDED_REALS, PADDED_ROWS, ROWS, assert_same, build, generate, generate_by_hand
from modeling.tiny import tokens
from oracle import loop_mask
from segattn.modeling import prefill
from strategies import fill

NAMES = ["llama", "mistral-window", "gemma3"]
CHUNK_ROWS = [[-1] * 2 + [0] * 4 + [1] * 6 + [-1] * 2, [-1] * 2 + [0] * 10 + [-1] * 2]
CHUNK_REALS = [[0] * 2 + [1] * 12, [1] * 14]


@pytest.fixture
def lengths(monkeypatch):
    """How many tokens each pass of a prefill with segments ran."""
    seen, stock = [], GenerationMixin._prefill

    def counted(self, input_ids, generation_config, model_kwargs, is_first_iteration=True):
        if "segment_ids" in model_kwargs:
            seen.append(input_ids.shape[1])
        return stock(self, input_ids, generation_config, model_kwargs, is_first_iteration)

    monkeypatch.setattr(GenerationMixin, "_prefill", counted)
    return seen


@pytest.mark.parametrize(
    ("rows", "start", "size", "ends"),
    [
        ([[-1] * 7], 0, 3, [3, 6, 7]),
        ([[0] * 7], 0, 3, [7]),
        ([[-1, 0, 0, 0, 0, 1, 1]], 0, 3, [1, 5, 7]),
        ([[0, 0, 1, 1, 2, 2, 2]], 0, 4, [4, 7]),
        ([[0, 0, 1, 1, 2, 2, 2]], 2, 4, [4, 7]),
        ([[-1, -1, -1, 0, 0, 0, 0, -1]], 0, 3, [3, 7, 8]),
        ([[-1, -1, -1, -1, 0, 0], [0, 0, 0, 1, 1, 1]], 0, 1, [3, 6]),
        ([[-1, -1, 0, 0, 0, -1], [0, 0, 0, 1, 1, 1]], 0, 1, [6]),
        ([[0, 0, 0, 0, 1]], 4, 1, [5]),
    ],
    ids=str,
)
def test_where_chunks_end(rows, start, size, ends):
    assert prefill.chunk_ends(torch.tensor(rows), start, size) == ends


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_chunks_are_as_large_as_they_may_be(data):
    length, size = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 6))
    rows = [fill(data.draw, length) for _ in range(data.draw(st.integers(1, 3)))]
    start = data.draw(st.integers(0, length - 1))
    ends = prefill.chunk_ends(torch.tensor(rows), start, size)
    assert ends[-1] == length
    assert ends == sorted(set(ends))

    def cuts(position):
        return position < length and any(row[position - 1] == row[position] >= 0 for row in rows)

    before = start
    for end in ends:
        assert before < end
        assert not cuts(end)
        if end - before > size:
            assert all(cuts(inner) for inner in range(before + 1, end)), "only what cannot be cut is longer"
        else:
            later = range(end + 1, min(before + size, length) + 1)
            assert all(cuts(further) for further in later), "nothing that fits is left for the next chunk"
        before = end


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize(
    ("rows", "reals", "size", "runs"),
    [
        (ROWS[:1], None, 20, [14]),
        (ROWS[:1], None, 7, [7, 7]),
        (ROWS[:1], None, 3, [1, 6, 5, 2]),
        (ROWS[1:], None, 9, [9, 5]),
        (ROWS, None, 1, [12, 2]),
        (ROWS, None, 7, [12, 2]),
        (PADDED_ROWS, PADDED_REALS, 4, [1, 13]),
        (CHUNK_ROWS[:1], CHUNK_REALS[:1], 6, [6, 6, 2]),
        (CHUNK_ROWS, CHUNK_REALS, 3, [2, 10, 2]),
        ([[-1] * 14], None, 3, [3, 3, 3, 3, 2]),
        ([[-1] * 8 + [0] * 6], None, 5, [5, 3, 6]),
        ([[0] * 14], None, 5, [14]),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES)
def test_chunks_give_the_tokens_and_logits_of_one_pass(name, rows, reals, size, runs, static, lengths):
    ids = tokens(len(rows))
    options = {**GREEDY, "prefill_chunk_size": size, "disable_compile": True}
    options |= {"cache_implementation": "static"} if static else {}
    want = generate_by_hand(name, "sdpa", ids, rows, reals, **GREEDY)
    assert_same(generate(name, "sdpa", ids, rows, reals, **options), want)
    assert lengths == runs


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_any_segmentation_any_chunk_size(data):
    name, size = data.draw(st.sampled_from([*NAMES, "gemma2"])), data.draw(st.integers(1, 8))
    rows, reals = [], []
    for _ in range(data.draw(st.integers(1, 2))):
        padded = data.draw(st.integers(0, 9))
        rows.append([-1] * padded + fill(data.draw, 14 - padded))
        reals.append([0] * padded + [1] * (14 - padded))
    implementation = "eager" if name == "gemma2" else "sdpa"
    ids, options = tokens(len(rows)), {**GREEDY, "max_new_tokens": 3}
    cache = data.draw(st.sampled_from([{}, {"cache_implementation": "static"}]))
    want = generate_by_hand(name, implementation, ids, rows, reals, **options)
    got = generate(name, implementation, ids, rows, reals, prefill_chunk_size=size, **options, **cache)
    assert_same(got, want)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_searches_after_chunks(name, options):
    options = {**GREEDY, **options}
    torch.manual_seed(3)
    want = generate_by_hand(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **options)
    torch.manual_seed(3)
    got = generate(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, prefill_chunk_size=4, **options)
    assert_same(got, want)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("only_new", [False, True], ids=["whole chat", "new tokens"])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_on_a_filled_cache(name, only_new, kind, lengths):
    ids, row = torch.cat([tokens(1, 6), tokens(1, 12, 1)], 1), [0] * 6 + [-1] * 5 + [1] * 4 + [2] * 3
    model = segattn.enable(build(name))
    cache = DynamicCache(config=model.config)
    if kind == "static":
        cache = StaticCache(config=model.config, max_cache_len=40)
    model.generate(ids[:, :6], segment_ids=torch.tensor([row[:6]]), past_key_values=cache, max_new_tokens=1)
    got = model.generate(
        ids[:, 6:] if only_new else ids,
        attention_mask=torch.ones_like(ids),
        segment_ids=torch.tensor([row]),
        past_key_values=cache,
        prefill_chunk_size=3,
        **GREEDY,
    )
    if only_new:
        got.sequences = torch.cat([ids[:, :6], got.sequences], 1)
    assert_same(got, generate_by_hand(name, "sdpa", ids, [row], **GREEDY))
    assert lengths[-4:] == [3, 2, 4, 3]


def test_the_option_counts_wherever_it_is_set(lengths):
    want = generate_by_hand("llama", "sdpa", tokens(), ROWS, **GREEDY)
    for place in ("option", "config", "model"):
        model, options = segattn.enable(build()), dict(GREEDY)
        if place == "model":
            model.generation_config.prefill_chunk_size = 4
        elif place == "config":
            options = {"generation_config": GenerationConfig(prefill_chunk_size=4, **GREEDY)}
        else:
            options["prefill_chunk_size"] = 4
        lengths.clear()
        assert_same(model.generate(tokens(), segment_ids=torch.tensor(ROWS), **options), want)
        assert lengths == [12, 2]


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
@pytest.mark.parametrize("name", NAMES)
def test_long_prompts_are_cut_by_themselves(name, cache, lengths, monkeypatch):
    want = generate_by_hand(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY)
    monkeypatch.setattr(prefill, "AUTOMATIC_CHUNK", 13)
    assert_same(generate(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY, **cache), want)
    assert lengths == [1, 13]
    lengths.clear()
    monkeypatch.setattr(prefill, "AUTOMATIC_CHUNK", 14)
    assert_same(generate(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY, **cache), want)
    assert lengths == [14]


def test_a_prompt_over_the_threshold_runs_in_bounded_passes(lengths):
    model = segattn.enable(build(max_position_embeddings=20_000))
    ids = tokens(1, 2 * prefill.AUTOMATIC_CHUNK + 10)
    runs = [prefill.AUTOMATIC_CHUNK // 2 + number for number in range(4)]
    row = [number for number, size in enumerate(runs) for _ in range(size)]
    row += [-1] * (ids.shape[1] - len(row))
    options = {**GREEDY, "max_new_tokens": 2}
    got = model.generate(ids, segment_ids=torch.tensor([row]), **options)
    assert len(lengths) == 4
    assert max(lengths) <= prefill.AUTOMATIC_CHUNK
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "AUTOMATIC_CHUNK", 10**9)
        assert_same(got, model.generate(ids, segment_ids=torch.tensor([row]), **options))


def test_a_window_s_mask_is_that_of_the_double_loop(monkeypatch):
    """What the layers of a windowed model see in every chunk, also behind a segment longer than the window."""
    row, seen = [0] * 3 + [1] * 7 + [2] * 2 + [-1] * 2, []
    model = segattn.enable(build("mistral-window"))
    mapping = AttentionMaskInterface._global_mapping
    name = model.config._attn_implementation
    stock = mapping[name]

    def record(**arguments):
        mask = stock(**arguments)
        seen.append((arguments["q_length"], mask))
        return mask

    monkeypatch.setitem(mapping, name, record)
    model.generate(tokens(1), segment_ids=torch.tensor([row]), prefill_chunk_size=3, **GREEDY)
    start = 0
    for length, mask in seen[:4]:
        end = start + length
        want = loop_mask([row[:end]], window=4, queries=length)[..., max(0, start - 3) :]
        assert torch.equal(mask, want)
        start = end
    assert start == 14


@pytest.mark.parametrize("family", ["gpt_oss", "gemma2", "gemma3_text", "mistral", "cohere2", "olmo3", "gemma3n_text"])
def test_families_with_windows_and_shared_keys(family):
    """Windows and everything else that a family adds, one pass against chunks of one and of five tokens."""
    try:
        model = segattn.enable(tiny_models.build(family))
    except tiny_models.CannotBuild as reason:
        pytest.skip(str(reason))
    ids = torch.randint(3, tiny_models.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))
    rows = torch.tensor([[-1] * 3 + [0] * 12 + [1] * 2 + [-1] * 7, [-1] * 5 + [0] * 4 + [-1] * 8 + [1] * 6 + [-1]])
    inputs = {"input_ids": ids, "segment_ids": rows, "attention_mask": torch.ones_like(ids), **GREEDY}
    inputs["attention_mask"][0, :2] = 0
    inputs["eos_token_id"] = None
    want = model.generate(**inputs)
    for options in ({"prefill_chunk_size": 1}, {"prefill_chunk_size": 5}):
        assert_same(model.generate(**inputs, **options), want)


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_computed_by_slices(name, size):
    model = segattn.enable(build(name), backend="sliced")
    want = generate_by_hand(name, "sdpa", tokens(), ROWS, **GREEDY)
    assert_same(model.generate(tokens(), segment_ids=torch.tensor(ROWS), prefill_chunk_size=size, **GREEDY), want)


@pytest.mark.parametrize("size", [0, -3, 2.5, True, "4"])
def test_a_size_that_is_none_is_refused(size):
    model = segattn.enable(build())
    with pytest.raises(segattn.UnsupportedModelError, match=r"expected the most tokens of a chunk, an int >= 1"):
        model.generate(tokens(), segment_ids=torch.tensor(ROWS), prefill_chunk_size=size, max_new_tokens=2)


def test_what_cannot_be_cut_is_refused_when_asked_and_runs_in_one_pass_when_not(lengths, monkeypatch):
    class Kept(cache_utils.DynamicLayer):
        """Stands for any layer whose state is not plain keys and values."""

    def inputs(model):
        cache = DynamicCache(config=model.config)
        cache.layers = [Kept() for _ in cache.layers]
        return {"segment_ids": torch.tensor(ROWS), "past_key_values": cache, **GREEDY}

    model = segattn.enable(build())
    with pytest.raises(segattn.UnsupportedModelError, match="prefill_chunk_size=4 cannot be kept: a cache of Kept"):
        model.generate(tokens(), prefill_chunk_size=4, **inputs(model))
    for options, why in (
        ({"use_cache": False}, "there is no KV cache"),
        ({"output_attentions": True}, "for the last chunk only"),
        ({"output_hidden_states": True}, "for the last chunk only"),
    ):
        with pytest.raises(segattn.UnsupportedModelError, match=why):
            model.generate(tokens(), segment_ids=torch.tensor(ROWS), prefill_chunk_size=4, **options, **GREEDY)
    monkeypatch.setattr(prefill, "AUTOMATIC_CHUNK", 4)
    assert_same(model.generate(tokens(), **inputs(model)), generate_by_hand("llama", "sdpa", tokens(), ROWS, **GREEDY))
    hidden = model.generate(tokens(), segment_ids=torch.tensor(ROWS), output_hidden_states=True, **GREEDY)
    assert hidden.hidden_states[0][0].shape[1] == 14
    assert set(lengths) == {14}


def test_positions_that_follow_the_length_of_the_pass_are_not_cut(lengths, monkeypatch):
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    options = {"max_position_embeddings": 8, "rope_parameters": rope}
    model = segattn.enable(build(**options))
    inputs = {"input_ids": tokens(), "segment_ids": torch.tensor(ROWS), **GREEDY}
    want = model.generate(**inputs)
    with pytest.raises(segattn.UnsupportedModelError, match="rotary positions depend on the length"):
        model.generate(prefill_chunk_size=12, **inputs)
    monkeypatch.setattr(prefill, "AUTOMATIC_CHUNK", 12)
    assert_same(segattn.enable(build(**options)).generate(**inputs), want)
    assert set(lengths) == {14}


def test_chunks_that_cut_a_segment_would_show(monkeypatch):
    """Cut at equal steps, as a stock model does, the pass that begins inside a segment raises."""
    monkeypatch.setattr(prefill, "chunk_ends", lambda ids, start, size: [*range(start + size, 14, size), 14])
    with pytest.raises(
        segattn.SegmentError, match="row 1: segment 0 lies on both sides of position 7, where this pass"
    ):
        generate("llama", "sdpa", tokens(), ROWS, prefill_chunk_size=7, **GREEDY)
