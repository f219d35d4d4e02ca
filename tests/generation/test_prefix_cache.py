"""What a prefix cache gives out and reuses, against a stock model without a cache under a hand-built mask."""

import threading
from dataclasses import FrozenInstanceError

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import segattn
from generation.serving import MANY, ask, ask_by_hand, batch_of, check, make, prompt, words
from modeling.generating import GREEDY, assert_same, build, generate_by_hand
from modeling.tiny import tokens
from segattn.generation import PrefixCacheError

SYSTEM, OTHER = words(9, 1), words(7, 2)
FIRST, SECOND = words(5, 3), words(6, 4)
HEADER = words(2, 5)
NAMES = ["llama", "mistral-window", "gemma3"]


def chat(*users, system=SYSTEM):
    return prompt((system, True), *[(user, True) for user in users], (HEADER, False))


@pytest.mark.parametrize("name", NAMES)
def test_a_shared_system_prompt_is_computed_once(name):
    """Windows of 4 are shorter than the system prompt: what is reused was seen by it all the same."""
    model, cache = make(name)
    assert check(name, model, cache, [chat(FIRST)])[1] == 0
    assert check(name, model, cache, [chat(SECOND)])[1] == len(SYSTEM)
    assert check(name, model, cache, [chat(FIRST)])[1] == len(SYSTEM) + len(FIRST) + 1, "all but one token"
    assert check(name, model, cache, [chat(FIRST, system=OTHER)])[1] == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_reuses_its_own_answers(name):
    model, cache = make(name)
    got, _ = check(name, model, cache, [chat(FIRST)])
    held = got.sequences[0].tolist()
    ids, segments = chat(FIRST)
    ids, segments = held + SECOND + HEADER, segments + [-1] * 8 + [9] * len(SECOND) + [-1] * 2
    _, reused = check(name, model, cache, [(ids, segments)])
    assert reused == len(held) - 1, "the last token has no keys yet"
    fork = [*held[:-4], 50, *SECOND, *HEADER]
    segments = [*segments[: len(held) - 4], -1, *segments[len(held) :]]
    _, reused = check(name, model, cache, [(fork, segments)])
    assert len(held) - 4 <= reused <= len(held) - 3, "a causal run is reused up to the token that differs"


def test_part_of_a_segment_is_never_reused():
    longer = prompt((SYSTEM + FIRST, True), (HEADER, False))
    shorter = prompt((SYSTEM[:5], True), (HEADER, False))
    causal = prompt((SYSTEM + FIRST + HEADER, False))
    half = prompt((SYSTEM[:4], False), (SYSTEM[4:], True), (HEADER, False))
    for row in (longer, shorter, half, causal):
        model, cache = make()
        check("llama", model, cache, [chat(FIRST)])
        assert check("llama", model, cache, [row])[1] == 0


def test_a_causal_run_is_not_taken_for_a_segment_nor_the_reverse():
    model, cache = make()
    check("llama", model, cache, [prompt((SYSTEM, False), (HEADER, True))])
    assert check("llama", model, cache, [prompt((SYSTEM, True), (HEADER, False))])[1] == 0
    assert check("llama", model, cache, [prompt((SYSTEM[:6], False), (FIRST, True))])[1] == 6
    assert check("llama", model, cache, [prompt((SYSTEM[:6], False), (SYSTEM[6:], True), (HEADER, False))])[1] == 6


def test_segments_that_are_neighbours_do_not_match_one_segment():
    model, cache = make()
    check("llama", model, cache, [prompt((SYSTEM, True), (FIRST, True), (HEADER, False))])
    assert check("llama", model, cache, [prompt((SYSTEM + FIRST, True), (HEADER, False))])[1] == 0
    ids, segments = prompt((SYSTEM, True), (FIRST, True), (HEADER, False))
    renumbered = [7 if segment == 0 else segment for segment in segments]
    assert check("llama", model, cache, [(ids, renumbered)])[1] == len(ids) - 1, "numbers do not matter"


def test_a_prompt_that_ends_with_its_segment():
    model, cache = make()
    row = prompt((SYSTEM, True), (FIRST, True))
    check("llama", model, cache, [row])
    assert check("llama", model, cache, [row])[1] == len(SYSTEM), "the last segment has to be run for the next token"
    single = prompt((SYSTEM, True), (FIRST[:1], True))
    assert check("llama", model, cache, [single])[1] == len(SYSTEM)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch_share_what_they_have_in_common(name):
    model, cache = make(name)
    check(name, model, cache, [chat(FIRST)])
    # Both rows know the system prompt; the shorter one has its padding before it.
    _, reused = check(name, model, cache, [chat(SECOND), chat(OTHER)])
    assert reused == 2 * len(SYSTEM)
    check(name, model, cache, [chat(FIRST, SECOND), chat(FIRST)])
    _, reused = check(name, model, cache, [chat(FIRST), chat(FIRST, SECOND), chat(OTHER)])
    lengths = [len(row[0]) for row in (chat(FIRST), chat(FIRST, SECOND), chat(OTHER))]
    assert reused == sum(lengths) - 3, "all but a token of each"


@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_is_all_padding_up_to_there_needs_no_prefix(name):
    model, cache = make(name)
    check(name, model, cache, [chat(FIRST)])
    short = prompt((OTHER[:3], True), (HEADER[:1], False))
    assert check(name, model, cache, [chat(SECOND), short])[1] == len(SYSTEM)
    assert check(name, model, cache, [chat(SECOND), short])[1] == len(chat(SECOND)[0]) - 1 + len(short[0]) - 1


def test_a_row_without_a_hit_does_not_keep_the_others_from_reusing():
    model, cache = make()
    check("llama", model, cache, [chat(FIRST)])
    rows = [chat(FIRST), chat(FIRST, system=words(8, 77)), chat(SECOND)]
    _, reused = check("llama", model, cache, rows)
    assert reused == len(chat(FIRST)[0]) - 1 + len(SYSTEM)
    assert check("llama", model, cache, rows)[1] == sum(len(ids) - 1 for ids, _ in rows)


def test_rows_that_know_equally_much_are_lined_up_in_one_pass():
    model, cache = make()
    ask(model, cache, [chat(FIRST)])
    runs = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: runs.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    rows = [chat(SECOND), chat(OTHER), chat(words(3, 9), words(2, 10))]
    ask(model, cache, rows, max_new_tokens=1)
    longest = max(len(ids) for ids, _ in rows)
    assert runs == [(3, longest - len(SYSTEM) - 1), (3, 1)]


def test_the_common_column_cuts_no_row_s_segment():
    model, cache = make()
    one = prompt((SYSTEM, True), (FIRST, False), (HEADER, False))
    other = prompt((SYSTEM[:2], False), (words(12, 8), True), (HEADER, False))
    check("llama", model, cache, [one, other])
    check("llama", model, cache, [one, other])
    shifted = prompt((SYSTEM[:2], False), (words(12, 8), True), (HEADER, False), (SECOND, True), (HEADER, False))
    check("llama", model, cache, [one, shifted])


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": True, "top_k": 5},
        {"repetition_penalty": 1.5},
        {"prefill_chunk_size": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_search_modes_on_what_is_known(name, options):
    model, cache = make(name)
    rows = [chat(FIRST), chat(SECOND, OTHER)]
    ask(model, cache, [chat(OTHER)])
    for _ in range(3):
        build(name)  # draws the random numbers that the stock model will draw
        got = ask(model, cache, rows, **options)
        stock = {key: value for key, value in options.items() if key != "prefill_chunk_size"}
        assert_same(got, ask_by_hand(name, rows, **stock))
    assert cache.stats().tokens_reused > len(SYSTEM) * 2
    check(name, model, cache, [chat(FIRST)])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_gemma2_and_eager_attention(implementation):
    name = "gemma2" if implementation == "eager" else "llama"
    model, cache = make(name, implementation=implementation)
    for rows in ([chat(FIRST)], [chat(FIRST), chat(SECOND)]):
        got = ask(model, cache, rows)
        assert_same(got, ask_by_hand(name, rows, implementation))
    assert cache.stats().tokens_reused > 0


class Fixed:
    """A segmenter that puts the first nine tokens into a segment."""

    def segment_ids(self, input_ids, attention_mask=None):
        ids = torch.full_like(input_ids, -1)
        ids[:, :9] = 0
        return ids

    def to_dict(self):
        return {}


def test_the_segmenter_gives_the_segments_where_none_are_given():
    model = segattn.enable(build(), Fixed())
    cache = segattn.PrefixCache(model, max_bytes=MANY)
    for row in ([*SYSTEM, *FIRST], [*SYSTEM, *SECOND]):
        got = model.generate(torch.tensor([row]), prefix_cache=cache, **GREEDY)
        rows = [[0] * 9 + [-1] * (len(row) - 9)]
        assert_same(got, generate_by_hand("llama", "sdpa", torch.tensor([row]), rows, **GREEDY))
    assert cache.stats().tokens_reused == 9 + (FIRST[0] == SECOND[0])
    assert cache.begin(torch.tensor([[*SYSTEM, *FIRST]])).columns == 13


def test_causal_on_purpose_shares_only_what_is_causal_anyway():
    model, cache = make()
    ids, segments = chat(FIRST)
    ask(model, cache, [(ids, segments)])
    with segattn.causal(model):
        got = model.generate(torch.tensor([ids]), prefix_cache=cache, **GREEDY)
        assert cache.stats().tokens_reused == 0
        again = model.generate(torch.tensor([ids]), prefix_cache=cache, **GREEDY)
        assert cache.stats().tokens_reused == len(ids) - 1
    stock = build().generate(torch.tensor([ids]), **GREEDY)
    assert_same(got, stock)
    assert_same(again, stock)
    check("llama", model, cache, [(ids, segments)])
    causal = (ids, [-1] * len(ids))
    assert check("llama", model, cache, [causal])[1] == len(ids) - 1, "all causal is all causal"


def test_a_stock_model_is_served_causally_at_the_lower_level():
    model = build()
    cache = segattn.PrefixCache(model, max_bytes=MANY)
    ids = torch.tensor([[*SYSTEM, *FIRST]])
    want = build().generate(ids, **GREEDY)
    for reused in (0, 13):
        request = cache.begin(ids)
        assert request.reused == [reused]
        got = model.generate(ids, past_key_values=request.past_key_values, **GREEDY)
        cache.finish(request, got)
        assert_same(got, want)
    with pytest.raises(segattn.UnsupportedModelError, match="not enabled: it runs causally"):
        cache.begin(ids, torch.zeros_like(ids))


def test_fill_computes_what_nobody_has_asked_for_yet():
    model, cache = make()
    ids, segments, reals = batch_of([prompt((SYSTEM, True)), prompt((OTHER, True))])
    inputs = (ids, torch.tensor(segments), torch.tensor(reals))
    assert cache.fill(*inputs) == len(SYSTEM) + len(OTHER)
    assert cache.fill(*inputs) == 0
    assert check("llama", model, cache, [chat(FIRST)])[1] == len(SYSTEM)
    assert check("llama", model, cache, [chat(FIRST, system=OTHER)])[1] == len(OTHER)
    stock = segattn.PrefixCache(build(), max_bytes=MANY)
    assert stock.fill(ids[:1]) == len(SYSTEM)
    assert stock.fill(ids[:1]) == 0


def test_a_forward_pass_of_ones_own_goes_on_from_the_lower_level():
    model, cache = make()
    ids, segments = chat(FIRST)
    cache.fill(torch.tensor([ids[:9]]), torch.tensor([segments[:9]]))
    request = cache.begin(torch.tensor([ids]), torch.tensor([segments]))
    assert (request.columns, request.reused) == (9, [9])
    with torch.no_grad():
        step = model(
            torch.tensor([ids[9:]]), segment_ids=torch.tensor([segments]), past_key_values=request.past_key_values
        )
    want = ask_by_hand("llama", [(ids, segments)])
    torch.testing.assert_close(step.logits[:, -1], want.logits[0], atol=1e-5, rtol=0)
    cache.finish(request)
    assert cache.begin(torch.tensor([ids]), torch.tensor([segments])).columns == len(ids) - 1


def test_what_is_handed_out_can_be_cropped_and_overwritten():
    model, cache = make()
    ids, segments = chat(FIRST)
    ask(model, cache, [(ids, segments)])
    for _ in range(2):
        request = cache.begin(torch.tensor([ids]), torch.tensor([segments]))
        request.past_key_values.crop(-3)
        for layer in request.past_key_values.layers:
            layer.keys.fill_(7.0)
            layer.values.zero_()
    assert check("llama", model, cache, [(ids, segments)])[1] == len(ids) - 1
    got = ask(model, cache, [(ids, segments)])
    for layer in got.past_key_values.layers:
        layer.keys.zero_()
    check("llama", model, cache, [(ids, segments)])


def test_shared_pieces_are_stored_once():
    model, cache = make()
    ask(model, cache, [chat(FIRST)], max_new_tokens=1)
    one = cache.stats()
    per_token = 3 * 2 * 2 * 8 * 4 + 8  # layers, keys and values, heads, size, float32; the id
    assert one.bytes == (len(SYSTEM) + len(FIRST) + len(HEADER)) * per_token
    ask(model, cache, [chat(SECOND)], max_new_tokens=1)
    two = cache.stats()
    assert two.bytes - one.bytes == (len(SECOND) + len(HEADER)) * per_token
    assert (one.entries, two.entries, len(cache)) == (3, 5, 5)


def test_statistics_say_what_happened():
    model, cache = make()
    assert cache.stats().hit_rate == 0
    ask(model, cache, [chat(FIRST)])
    ask(model, cache, [chat(SECOND), chat(OTHER)])
    counts = cache.stats()
    lengths = [len(chat(user)[0]) for user in (FIRST, SECOND, OTHER)]
    assert (counts.requests, counts.hits) == (3, 2)
    assert counts.tokens_reused + counts.tokens_computed == sum(lengths)
    assert counts.hit_rate == counts.tokens_reused / sum(lengths)
    assert f"{counts.entries} pieces, {counts.bytes} of {MANY} bytes" in repr(cache)
    with pytest.raises(FrozenInstanceError):
        counts.hits = 5
    cache.clear()
    assert (len(cache), cache.stats().bytes, cache.stats().requests) == (0, 0, 3)
    assert check("llama", model, cache, [chat(FIRST)])[1] == 0
    assert bool(segattn.PrefixCache(model, max_bytes=1))


def test_the_least_recently_used_leaves_go_first():
    model, cache = make()
    ask(model, cache, [chat(FIRST)], max_new_tokens=1)
    room = cache.stats().bytes
    model, cache = make(max_bytes=int(room * 1.6))
    for user in (FIRST, SECOND, OTHER, FIRST, SECOND):
        check("llama", model, cache, [chat(user)], max_new_tokens=1)
        assert cache.stats().bytes <= cache.max_bytes
        ids, segments = prompt((SYSTEM, True), (HEADER, False))
        assert cache.begin(torch.tensor([ids]), torch.tensor([segments])).columns >= len(SYSTEM), "the trunk stays"
    assert cache.stats().evictions > 0
    assert cache.begin(*(torch.tensor([part]) for part in chat(SECOND))).columns == len(chat(SECOND)[0]) - 1


def test_what_is_larger_than_the_cache_is_not_kept():
    model, cache = make(max_bytes=500)
    for _ in range(2):
        assert check("llama", model, cache, [chat(FIRST)])[1] == 0
    assert (len(cache), cache.stats().bytes, cache.stats().evictions) == (0, 0, 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: torch.nn.init.normal_(model.model.layers[1].self_attn.v_proj.weight),
        lambda model: model.load_state_dict(build(seed=4).state_dict()),
        lambda model: setattr(model.model.norm, "weight", torch.nn.Parameter(torch.full((32,), 2.0))),
        lambda model: model.model.layers[0].mlp.to(torch.float64).to(torch.float32),
    ],
    ids=["in place", "loaded", "replaced", "moved"],
)
def test_changed_weights_drop_what_they_computed(change):
    model, cache = make()
    ids, segments = chat(FIRST)
    ask(model, cache, [(ids, segments)])
    with torch.no_grad():
        change(model)
    inputs = {"segment_ids": torch.tensor([segments]), **GREEDY}
    want = model.generate(torch.tensor([ids]), **inputs)
    got = model.generate(torch.tensor([ids]), prefix_cache=cache, **inputs)
    assert_same(got, want)
    assert cache.stats().tokens_reused == 0


def test_a_training_step_drops_what_was_known_and_training_mode_is_refused():
    model, cache = make()
    ask(model, cache, [chat(FIRST)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model.train()
    ids, segments = (torch.tensor([part]) for part in chat(FIRST))
    with pytest.raises(segattn.UnsupportedModelError, match=r"call model.eval\(\)"):
        model.generate(ids, segment_ids=segments, prefix_cache=cache, **GREEDY)
    model(ids, segment_ids=segments).logits.square().mean().backward()
    optimizer.step()
    model.eval()
    want = model.generate(ids, segment_ids=segments, **GREEDY)
    assert_same(model.generate(ids, segment_ids=segments, prefix_cache=cache, **GREEDY), want)
    assert cache.stats().tokens_reused == 0


def test_weights_that_change_under_a_request_are_not_mixed_with_it():
    model, cache = make()
    ids, segments = (torch.tensor([part]) for part in chat(FIRST))
    request = cache.begin(ids, segments)
    model.generate(ids, segment_ids=segments, past_key_values=request.past_key_values, **GREEDY)
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight.mul_(2)
    cache.finish(request)
    assert len(cache) == 0


def test_every_adapter_has_its_own_prefixes():
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "k_proj"], init_lora_weights=False)
    model = get_peft_model(build(), config)
    model.add_adapter("other", config)
    segattn.enable(model)
    cache = segattn.PrefixCache(model, max_bytes=MANY)
    ids, segments = (torch.tensor([part]) for part in chat(FIRST))

    def compare(fresh):
        before = cache.stats().tokens_reused
        inputs = {"input_ids": ids, "segment_ids": segments, **GREEDY}
        want = model.generate(**inputs)
        assert_same(model.generate(prefix_cache=cache, **inputs), want)
        assert (cache.stats().tokens_reused == before) == fresh
        return want

    outputs = [compare(fresh=True)]
    compare(fresh=False)
    model.set_adapter("other")
    outputs.append(compare(fresh=True))
    with model.disable_adapter():
        outputs.append(compare(fresh=True))
    model.set_adapter("default")
    compare(fresh=False)
    for layer in model.modules():
        if isinstance(getattr(layer, "scaling", None), dict):
            layer.scaling["default"] *= 3
    outputs.append(compare(fresh=True))
    model.merge_adapter()
    compare(fresh=True)
    logits = [torch.stack(output.logits) for output in outputs]
    assert all((logits[0] - other).abs().max() > 1e-3 for other in logits[1:])


def test_other_threads_may_use_the_same_model_and_cache():
    model, cache = make(max_bytes=60_000)
    chats = [
        chat(*(words(3 + (number + turn) % 4, 20 + turn) for turn in range(1 + number % 3))) for number in range(6)
    ]
    want = [ask_by_hand("llama", [row], max_new_tokens=3) for row in chats]
    wrong, start = [], threading.Barrier(4, timeout=60)

    def run(offset):
        start.wait()
        for step in range(8):
            number = (offset + step) % len(chats)
            try:
                assert_same(ask(model, cache, [chats[number]], max_new_tokens=3), want[number])
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=run, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    counts = cache.stats()
    assert counts.requests == 32
    assert counts.hits > 16
    assert counts.bytes <= 60_000


def test_padding_elsewhere_is_served_without_being_kept():
    _, cache = make()
    ids, segments = chat(FIRST)
    holes = torch.ones(1, len(ids), dtype=torch.long)
    holes[0, 15] = 0
    request = cache.begin(torch.tensor([ids]), torch.tensor([segments]), holes)
    assert (request.columns, request.rows) == (0, [])
    with pytest.raises(segattn.SegmentError, match="pass such prompts one by one"):
        cache.fill(torch.tensor([ids]), torch.tensor([segments]), holes)
    cache.finish(request)
    assert len(cache) == 0


def test_padding_that_transformers_infers_is_padding_here_too():
    model, cache = make()
    ids, segments, reals = batch_of([chat(FIRST), chat(FIRST, SECOND)])
    want = generate_by_hand("llama", "sdpa", ids, segments, reals, **GREEDY)
    for _ in range(2):
        got = model.generate(ids, segment_ids=torch.tensor(segments), prefix_cache=cache, eos_token_id=1, **GREEDY)
        assert_same(got, want)
    assert cache.stats().tokens_reused > 0


@pytest.mark.parametrize("size", [0, -1, 2.5, True, None, "1"])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(PrefixCacheError, match=r"max_bytes is .*; expected the most bytes to keep, an int >= 1"):
        segattn.PrefixCache(build(), max_bytes=size)


def options_of_another_call(model):
    return {
        "past_key_values": DynamicCache(),
        "position_ids": torch.arange(16)[None],
        "inputs_embeds": torch.zeros(1, 16, 32),
        "cache_implementation": "static",
        "use_cache": False,
        "assistant_model": build(seed=1),
        "prompt_lookup_num_tokens": 2,
        "assistant_early_exit": 1,
        "output_attentions": True,
        "output_hidden_states": True,
        "token_type_ids": torch.zeros(1, 16, dtype=torch.long),
        "custom_generate": lambda *_, **__: None,
    }


@pytest.mark.parametrize("name", options_of_another_call(None))
def test_options_that_a_prefix_cannot_serve_are_refused(name):
    model, cache = make()
    ids, segments = (torch.tensor([part]) for part in chat(FIRST))
    option = {name: options_of_another_call(model)[name]}
    with pytest.raises(segattn.UnsupportedModelError, match=rf"generate\({name}=.* with prefix_cache"):
        model.generate(ids, segment_ids=segments, prefix_cache=cache, max_new_tokens=2, **option)
    assert len(cache) == 0


def test_a_cache_of_another_model_or_no_cache_at_all_is_refused():
    model, _ = make()
    _, other = make()
    ids, segments = (torch.tensor([part]) for part in chat(FIRST))
    with pytest.raises(PrefixCacheError, match="belongs to another LlamaForCausalLM"):
        model.generate(ids, segment_ids=segments, prefix_cache=other)
    with pytest.raises(segattn.UnsupportedModelError, match="prefix_cache is a dict; expected"):
        model.generate(ids, segment_ids=segments, prefix_cache={})
    with pytest.raises(segattn.SegmentError, match="with a prefix cache, the prompt is passed whole"):
        model.generate(
            ids[:, 9:],
            attention_mask=torch.ones_like(ids),
            segment_ids=segments,
            prefix_cache=other.__class__(model, max_bytes=MANY),
        )


def test_models_whose_keys_depend_on_more_than_a_prefix_are_refused():
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    with pytest.raises(segattn.UnsupportedModelError, match="rotary positions depend on the length"):
        segattn.PrefixCache(build(rope_parameters=rope), max_bytes=MANY)
    tuned = get_peft_model(build(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(segattn.UnsupportedModelError, match="virtual tokens"):
        segattn.PrefixCache(tuned, max_bytes=MANY)
    recurrent = LlamaForCausalLM(LlamaConfig(**{**build().config.to_dict(), "layer_types": ["full_attention"] * 3}))
    recurrent.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    with pytest.raises(segattn.UnsupportedModelError, match=r"cannot be cut at a token \(LinearAttentionLayer\)"):
        segattn.PrefixCache(recurrent, max_bytes=MANY)


def test_prompts_without_tokens_or_of_padding_are_refused():
    model, cache = make()
    with pytest.raises(segattn.SegmentError):
        model.generate(prefix_cache=cache, max_new_tokens=1)
    with pytest.raises(segattn.SegmentError, match="row 1 is all padding"):
        cache.begin(tokens(), torch.full((2, 14), -1), torch.tensor([[1] * 14, [0] * 14]))
    with pytest.raises(segattn.SegmentError, match="expected the same"):
        cache.begin(tokens(), torch.full((2, 14), -1), torch.ones(2, 13))
