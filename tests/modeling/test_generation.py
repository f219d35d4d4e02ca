"""Generated tokens against transformers' own loop on a stock model whose every pass gets a hand-built mask."""

import pytest
import torch

import segattn
from modeling.tiny import CASES, build, hand_mask, tokens

ROWS = [[-1] + [4] * 6 + [0] * 5 + [-1] * 2, [0] * 9 + [-1] * 3 + [1] * 2]
PADDED_ROWS = [[-1] * 4 + [0] * 5 + [1] * 3 + [-1] * 2, [-1] + [0] * 9 + [1] * 4]
PADDED_REALS = [[0] * 4 + [1] * 10, [1] * 14]


def generate_by_hand(name, implementation, ids, rows, reals=None, **options):
    """No cache: every step runs the whole sequence under a mask from the double loop."""
    model = build(name, implementation)
    stock_forward = model.forward

    def forward(input_ids=None, position_ids=None, **kwargs):
        copies, new = input_ids.shape[0] // len(rows), input_ids.shape[1] - len(rows[0])
        grown = [row + [-1] * new for row in rows for _ in range(copies)]
        seen = None if reals is None else [real + [1] * new for real in reals for _ in range(copies)]
        mask = hand_mask(model, grown, implementation, seen)
        return stock_forward(input_ids=input_ids, attention_mask=mask, position_ids=position_ids, return_dict=True)

    forward.__signature__ = __import__("inspect").signature(stock_forward)
    model.forward = forward
    attention_mask = torch.ones_like(ids) if reals is None else torch.tensor(reals)
    return model.generate(ids, attention_mask=attention_mask, use_cache=False, **options)


def generate(name, implementation, ids, rows, reals=None, **options):
    model = segattn.enable(build(name, implementation))
    attention_mask = torch.ones_like(ids) if reals is None else torch.tensor(reals)
    return model.generate(ids, attention_mask=attention_mask, segment_ids=torch.tensor(rows), **options)


GREEDY = {"do_sample": False, "max_new_tokens": 8}


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_greedy(name, implementation):
    want = generate_by_hand(name, implementation, tokens(), ROWS, **GREEDY)
    assert torch.equal(generate(name, implementation, tokens(), ROWS, **GREEDY), want)


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_left_padded_batch(name, implementation):
    want = generate_by_hand(name, implementation, tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY)
    got = generate(name, implementation, tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY)
    assert torch.equal(got, want)
    alone = generate(name, implementation, tokens()[:1, 4:], [PADDED_ROWS[0][4:]], **GREEDY)
    assert torch.equal(got[:1, 4:], alone)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "top_k": 20, "temperature": 1.5},
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": True, "num_beams": 2},
    ],
    ids=["beams", "sampling", "several samples", "beam sampling"],
)
@pytest.mark.parametrize("reals", [None, PADDED_REALS], ids=["full", "padded"])
def test_search_modes(options, reals):
    rows = ROWS if reals is None else PADDED_ROWS
    options = {"max_new_tokens": 6, **options}
    torch.manual_seed(5)
    want = generate_by_hand("qwen3", "sdpa", tokens(), rows, reals, **options)
    torch.manual_seed(5)
    got = generate("qwen3", "sdpa", tokens(), rows, reals, **options)
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3"])
def test_the_static_cache_and_no_cache_give_the_same_tokens(name):
    want = generate_by_hand(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY)
    for options in ({"cache_implementation": "static", "disable_compile": True}, {"use_cache": False}):
        assert torch.equal(generate(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY, **options), want)


def test_segments_change_what_is_generated():
    causal = build().generate(tokens(), attention_mask=torch.ones_like(tokens()), **GREEDY)
    assert not torch.equal(generate("llama", "sdpa", tokens(), ROWS, **GREEDY), causal)


def test_all_causal_ids_and_the_causal_block_generate_the_stock_tokens():
    ids = tokens()
    stock = build().generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)
    model = segattn.enable(build())
    assert torch.equal(model.generate(ids, segment_ids=torch.full_like(ids, -1), **GREEDY), stock)
    with segattn.causal(model):
        assert torch.equal(model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY), stock)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3"])
def test_a_conversation_continues_on_its_cache(name):
    model = segattn.enable(build(name))
    first, row = tokens(1, 10, 1), [-1] + [0] * 7 + [-1] * 2
    options = {**GREEDY, "return_dict_in_generate": True}
    turn = model.generate(first, segment_ids=torch.tensor([row]), **options)
    # The answer's last token is not in the cache yet; then a new user turn comes.
    both = torch.cat([turn.sequences, tokens(1, 6, 2)], 1)
    rows = [row + [-1] * (turn.sequences.shape[1] - len(row)) + [1] * 5 + [-1]]
    again = model.generate(
        both,
        attention_mask=torch.ones_like(both),
        segment_ids=torch.tensor(rows),
        past_key_values=turn.past_key_values,
        **GREEDY,
    )
    assert torch.equal(again, generate_by_hand(name, "sdpa", both, rows, **GREEDY))


def test_a_manual_decoding_loop_on_a_cache():
    ids, rows = tokens(1), [ROWS[0]]
    model = segattn.enable(build())
    with torch.no_grad():
        step = model(ids, segment_ids=torch.tensor(rows), use_cache=True)
        produced = [step.logits[:, -1].argmax(-1)]
        for _ in range(7):
            step = model(produced[-1][:, None], past_key_values=step.past_key_values)
            produced.append(step.logits[:, -1].argmax(-1))
    want = generate_by_hand("llama", "sdpa", ids, rows, **GREEDY)
    assert torch.equal(torch.stack(produced, 1), want[:, ids.shape[1] :])


def test_prompt_lookup_and_assisted_decoding_give_the_greedy_tokens():
    ids, rows = tokens(1), [ROWS[0]]
    want = generate_by_hand("llama", "sdpa", ids, rows, **GREEDY)
    assert torch.equal(generate("llama", "sdpa", ids, rows, prompt_lookup_num_tokens=3, **GREEDY), want)
    draft = segattn.enable(build(seed=3))
    assert torch.equal(generate("llama", "sdpa", ids, rows, assistant_model=draft, **GREEDY), want)


def test_decoding_builds_no_segment_mask(monkeypatch):
    """After the prefill a step costs what it costs the stock model."""
    from segattn.modeling import masking

    built = []
    stock = masking.open_segments
    monkeypatch.setattr(masking, "open_segments", lambda *a: built.append(a) or stock(*a))
    generate("llama", "sdpa", tokens(), ROWS, **GREEDY)
    assert len(built) == 1
