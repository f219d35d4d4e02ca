"""Generated tokens against transformers' own loop on a stock model whose every pass gets a hand-built mask."""

import threading
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionMaskInterface, TextIteratorStreamer, pipeline

import chatml
import segattn
from cli.tiny_chat import make_model, make_tokenizer
from modeling.generating import (
    GREEDY,
    LOGITS,
    PADDED_REALS,
    PADDED_ROWS,
    ROWS,
    WINDOWED,
    assert_same,
    build,
    generate,
    generate_by_hand,
    run_by_hand,
)
from modeling.tiny import CASES, tokens


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_greedy(name, implementation):
    want = generate_by_hand(name, implementation, tokens(), ROWS, **GREEDY)
    assert_same(generate(name, implementation, tokens(), ROWS, **GREEDY), want)


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_left_padded_batch(name, implementation):
    want = generate_by_hand(name, implementation, tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY)
    got = generate(name, implementation, tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY)
    assert_same(got, want)
    alone = generate(name, implementation, tokens()[:1, 4:], [PADDED_ROWS[0][4:]], **GREEDY)
    assert torch.equal(got.sequences[:1, 4:], alone.sequences)


def test_rows_with_different_numbers_of_segments():
    rows = [[-1] * 14, [-1] * 5 + [3] * 8 + [-1], [0] * 2 + [1] * 3 + [2] * 4 + [5] * 5]
    reals = [[1] * 14, [0] * 4 + [1] * 10, [1] * 14]
    for name in WINDOWED:
        want = generate_by_hand(name, "sdpa", tokens(3), rows, reals, **GREEDY)
        assert_same(generate(name, "sdpa", tokens(3), rows, reals, **GREEDY), want)


SEARCHES = {
    "beams": {"do_sample": False, "num_beams": 3},
    "several beams": {"do_sample": False, "num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 1.5},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "beam sampling": {"do_sample": True, "num_beams": 2},
    "processors": {"do_sample": False, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
}


@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("reals", [None, PADDED_REALS], ids=["full", "padded"])
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_search_modes(name, options, reals):
    rows = ROWS if reals is None else PADDED_ROWS
    options = {"max_new_tokens": 6, **LOGITS, **options}
    torch.manual_seed(5)
    want = generate_by_hand(name, "sdpa", tokens(), rows, reals, **options)
    torch.manual_seed(5)
    got = generate(name, "sdpa", tokens(), rows, reals, **options)
    assert_same(got, want)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("name", WINDOWED)
def test_scores_and_logits_of_every_step(name, options):
    options = {**GREEDY, **options, "output_scores": True}
    want = generate_by_hand(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **options)
    got = generate(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **options)
    assert_same(got, want)
    torch.testing.assert_close(torch.stack(got.scores), torch.stack(want.scores), atol=1e-5, rtol=0)


def test_segments_change_what_is_generated():
    causal = build().generate(tokens(), attention_mask=torch.ones_like(tokens()), **GREEDY)
    assert not torch.equal(generate("llama", "sdpa", tokens(), ROWS, **GREEDY).sequences, causal.sequences)


@pytest.mark.parametrize("name", WINDOWED)
def test_without_the_overlay_the_comparison_fails(name, monkeypatch):
    want = generate_by_hand(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY)
    monkeypatch.setattr("segattn.modeling.masking.open_segments", lambda stock, ids: stock)
    for options in ({}, {"cache_implementation": "static"}):
        got = generate(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY, **options)
        with pytest.raises(AssertionError):
            assert_same(got, want)


def test_all_causal_ids_and_the_causal_block_generate_the_stock_tokens():
    ids = tokens()
    stock = build().generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)
    model = segattn.enable(build())
    assert_same(model.generate(ids, segment_ids=torch.full_like(ids, -1), **GREEDY), stock)
    with segattn.causal(model):
        assert_same(model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY), stock)
        first = build().generate(ids[:1], **GREEDY)
        for options in ({"cache_implementation": "static"}, {"prefill_chunk_size": 3}, {"prompt_lookup_num_tokens": 2}):
            got = model.generate(ids[:1], segment_ids=torch.tensor(ROWS[:1]), **GREEDY, **options)
            assert_same(got, first)


def test_a_manual_decoding_loop_on_a_cache():
    ids, rows = tokens(1), [ROWS[0]]
    model = segattn.enable(build())
    with torch.no_grad():
        step = model(ids, segment_ids=torch.tensor(rows), use_cache=True)
        logits = [step.logits[:, -1]]
        for _ in range(7):
            step = model(logits[-1].argmax(-1)[:, None], past_key_values=step.past_key_values)
            logits.append(step.logits[:, -1])
    want = generate_by_hand("llama", "sdpa", ids, rows, **GREEDY)
    torch.testing.assert_close(torch.stack(logits), torch.stack(want.logits), atol=1e-5, rtol=0)


class CountOperations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("reals", [None, PADDED_REALS], ids=["full", "padded"])
@pytest.mark.parametrize("name", WINDOWED)
def test_decoding_runs_the_tensor_operations_of_the_stock_model(name, reals, options):
    def of_one_token(model, **inputs):
        runs = []
        for length in (4, 5):
            with CountOperations() as run:
                attention_mask = torch.ones_like(tokens()) if reals is None else torch.tensor(reals)
                model.generate(
                    tokens(),
                    attention_mask=attention_mask,
                    do_sample=False,
                    max_new_tokens=length,
                    max_cache_len=40,
                    **inputs,
                    **options,
                )
            runs.append(run.counts)
        assert sum(runs[0].values()) > 500
        return runs[1] - runs[0]

    rows = ROWS if reals is None else PADDED_ROWS
    enabled = of_one_token(segattn.enable(build(name)), segment_ids=torch.tensor(rows))
    assert enabled == of_one_token(build(name))


@pytest.mark.parametrize("name", WINDOWED)
def test_decoding_builds_the_masks_of_the_stock_model_and_checks_nothing(name, monkeypatch):
    """Without padding a step on a dynamic cache has no mask, but for the windowed layers that stock masks too."""

    def recorded(model, **inputs):
        masks, table = [], AttentionMaskInterface._global_mapping
        implementation = model.config._attn_implementation
        build_mask = table[implementation]

        def record(**arguments):
            mask = build_mask(**arguments)
            masks.append((arguments["q_length"], mask is not None))
            return mask

        with monkeypatch.context() as patch:
            patch.setitem(table, implementation, record)
            model.generate(tokens(), attention_mask=torch.ones_like(tokens()), **inputs, **GREEDY)
        return [mask for mask in masks if mask[0] > 1], [mask for mask in masks if mask[0] == 1]

    stock_prefill, stock_steps = recorded(build(name))
    model, checked = segattn.enable(build(name)), []
    for place in ("generation", "inputs"):
        where = f"segattn.modeling.{place}.check_segment_ids"
        monkeypatch.setattr(where, lambda *args: checked.append(args) or segattn.segments.check_segment_ids(*args))
    prefill, steps = recorded(model, segment_ids=torch.tensor(ROWS))
    assert len(prefill) == len(stock_prefill)
    assert all(has_mask for _, has_mask in prefill)
    assert steps == stock_steps
    assert len(steps) == 7 * len(prefill)
    assert name != "llama" or not any(has_mask for _, has_mask in steps)
    assert 0 < len(checked) <= 2


def test_two_threads_generate_on_one_model():
    """Their passes are interleaved, layer by layer."""
    model, both = segattn.enable(build()), threading.Barrier(2, timeout=60)

    def meet(*_):
        both.wait()

    for layer in model.model.layers:
        layer.register_forward_pre_hook(meet)
    rows, got = [ROWS[0], [0] * 12 + [-1] * 2], {}

    def run(which):
        got[which] = model.generate(tokens(1), segment_ids=torch.tensor([rows[which]]), **GREEDY)

    threads = [threading.Thread(target=run, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which in (0, 1):
        want = generate_by_hand("llama", "sdpa", tokens(1), [rows[which]], **GREEDY)
        assert_same(got[which], want)
    assert (torch.stack(got[0].logits) - torch.stack(got[1].logits)).abs().max() > 1e-2


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "What is 3 + 4?"},
]


def chat_by_hand(messages, **options):
    tokenizer = make_tokenizer()
    ids, _, row = chatml.conversation(tokenizer, messages, generation_prompt=True)
    want = run_by_hand(make_model(), "sdpa", torch.tensor([ids]), [row], **options)
    return ids, row, want[0, len(ids) :].tolist()


def test_streaming_from_a_thread():
    tokenizer, options = make_tokenizer(), {"do_sample": False, "max_new_tokens": 12}
    ids, row, want = chat_by_hand(CHAT, **options)
    model = segattn.enable(make_model())
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    inputs = {"input_ids": torch.tensor([ids]), "segment_ids": torch.tensor([row])}
    thread = threading.Thread(target=model.generate, kwargs={**inputs, **options, "streamer": streamer})
    thread.start()
    other = tokens(1)
    with torch.no_grad():  # this thread's pass is another one
        causal = model(other, segment_ids=torch.full_like(other, -1)).logits
        assert torch.equal(causal, make_model()(other).logits)
    assert "".join(streamer) == tokenizer.decode(want)
    thread.join()


def test_the_pipeline_runs_chats_with_segments():
    segmenter = segattn.Segmenter.from_tokenizer(make_tokenizer())
    options = {"do_sample": False, "max_new_tokens": 12}
    chats = [CHAT, CHAT[:2]]
    model = segattn.enable(make_model(), segmenter)
    generator = pipeline("text-generation", model=model, tokenizer=make_tokenizer())
    for batch_size in (1, 2):
        outputs = generator(chats, return_tensors=True, batch_size=batch_size, **options)
        for chat, output in zip(chats, outputs, strict=True):
            ids, _, answer = chat_by_hand(chat, **options)
            got = output[0]["generated_token_ids"]
            assert got[-len(ids + answer) :] == ids + answer
            assert set(got[: -len(ids + answer)]) <= {chatml.END}  # padding
    batch = segmenter.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")
    ids, _, answer = chat_by_hand(CHAT, **options)
    assert model.generate(**batch, **options)[0].tolist() == ids + answer
