"""One engine, every kind of request: what each must be answered is computed by a stock model with a hand-made mask."""

import pytest

pytest.importorskip("vllm", reason="needs vLLM in an environment of its own: make test-serve")

from vllm.exceptions import VLLMValidationError

from serving import hand_oracle
from serving.engines import BLOCK, answers, engine, free_blocks, parameters
from serving.tiny_served import Chats

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def llm(served):
    with engine(served[0]) as made:
        yield made


@pytest.fixture
def chats(llm):
    llm.reset_prefix_cache()
    return Chats(11)


def greedy(served, ids, spans, count=8):
    tokens, margins = hand_oracle.greedy(served[1], ids, spans, count)
    assert min(margins) > 1e-3
    return tokens


def test_a_single_request_and_the_same_again(llm, served, chats):
    ids, spans = chats.prompt([("system", chats.text(50)), ("user", chats.text(80))])
    wanted = greedy(served, ids, spans)
    assert wanted != greedy(served, ids, [])
    assert answers(llm, [(ids, None)]) == ([wanted], [0])
    again, cached = answers(llm, [(ids, None)])
    assert again == [wanted]
    assert cached == [(len(ids) - 1) // BLOCK * BLOCK]


def test_a_prompt_is_read_in_one_step(llm, served, chats):
    ids, spans = chats.prompt([("system", chats.text(50)), ("user", chats.text(80))])
    llm.enqueue([{"prompt_token_ids": ids}], parameters(1), use_tqdm=False)
    (output,) = llm.llm_engine.step()
    assert list(output.outputs[0].token_ids) == greedy(served, ids, spans, 1)


def test_a_step_has_no_more_rows_than_requests_may_run(llm, chats):
    """Two prompts of three segments and an opening would need eight rows; vLLM's buffers hold four here."""
    prompts = [chats.prompt([("user", chats.text(20))] * 3)[0] for _ in range(2)]
    llm.enqueue([{"prompt_token_ids": ids} for ids in prompts], parameters(1), use_tqdm=False)
    assert [len(llm.llm_engine.step()) for _ in range(2)] == [1, 1]


def test_chats_are_segmented_from_their_token_ids(llm, served, chats):
    words, question = "abc def " * 6, "gh " * 20
    messages = [{"role": "system", "content": words}, {"role": "user", "content": question}]
    ids, spans = chats.prompt([(m["role"], chats.tokenizer(m["content"]).input_ids) for m in messages])
    output = llm.chat(messages, parameters(), use_tqdm=False)[0]
    assert list(output.prompt_token_ids) == ids
    assert list(output.outputs[0].token_ids) == greedy(served, ids, spans)


def test_two_messages_with_a_common_beginning_share_only_what_is_finished(llm, served, chats):
    system, opening = chats.text(60), chats.text(96)
    prompts = [chats.prompt([("system", system), ("user", opening + chats.text(20))]) for _ in range(2)]
    (one, spans), (other, _) = prompts
    common = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    assert common // BLOCK * BLOCK > spans[0][1] // BLOCK * BLOCK
    for ids, _ in prompts:
        got, cached = answers(llm, [(ids, None)])
        assert got == [greedy(served, ids, spans)]
    assert cached == [spans[0][1] // BLOCK * BLOCK]


def test_a_conversation_reuses_its_earlier_turns(llm, served, chats):
    turns = [("system", chats.text(40)), ("user", chats.text(60))]
    before = 0
    for turn in range(3):
        ids, spans = chats.prompt(turns)
        got, cached = answers(llm, [(ids, None)], count=12)
        assert got == [greedy(served, ids, spans, 12)]
        if turn:
            assert cached == [(before + 12 - 1) // BLOCK * BLOCK]
        before = len(ids)
        # As clients do: the answer goes back as a message. 256 and 257 are markers, which a random model may write.
        assert not {256, 257} & set(got[0]), "take another seed"
        turns += [("assistant", got[0]), ("user", chats.text(45))]


def test_segments_and_causal_requests_do_not_share_wrongly(llm, served, chats):
    ids, spans = chats.prompt([("user", chats.text(90))])
    explicit = [(0, 40), (50, 80)]
    flat = [bound for span in explicit for bound in span]
    wanted = [greedy(served, ids, s) for s in (spans, [], explicit)]
    assert len(set(map(tuple, wanted))) == 3
    for _ in range(2):
        got, _ = answers(llm, [(ids, None), (ids, "causal"), (ids, flat)])
        assert got == wanted


def test_a_cache_salt_keeps_tenants_apart(llm, chats):
    ids, _ = chats.prompt([("user", chats.text(90))])

    def cached(salt):
        prompt = {"prompt_token_ids": ids, **({"cache_salt": salt} if salt else {})}
        return llm.generate([prompt], parameters(2), use_tqdm=False)[0].num_cached_tokens

    assert [cached(salt) > 0 for salt in ("a", "b", "a", None, "b")] == [False, False, True, False, True]


def test_prompt_log_probabilities_are_those_of_the_mask(llm, served, chats):
    ids, spans = chats.prompt([("system", chats.text(40)), ("user", chats.text(50)), ("assistant", chats.text(30))])

    def error(override, spans):
        output = llm.generate([{"prompt_token_ids": ids}], parameters(1, override, prompt_logprobs=0), use_tqdm=False)[
            0
        ]
        got = [row[token].logprob for row, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
        return max(abs(a - b) for a, b in zip(got, hand_oracle.log_probability(served[1], ids, spans), strict=True))

    causal, segments = error("causal", []), error(None, spans)
    print(f"\nlargest error of a prompt log-probability: causal {causal:.2g}, segments {segments:.2g}")
    assert causal < 2e-3
    assert segments < max(4 * causal, 1e-4)


def test_log_probabilities_of_the_answer(llm, served, chats):
    ids, spans = chats.prompt([("user", chats.text(70))])
    output = llm.generate([{"prompt_token_ids": ids}], parameters(4, logprobs=0), use_tqdm=False)[0].outputs[0]
    row = hand_oracle.logits(served[1], ids + list(output.token_ids), spans).log_softmax(-1)
    for place, (token, found) in enumerate(zip(output.token_ids, output.logprobs, strict=True)):
        assert found[token].logprob == pytest.approx(float(row[len(ids) - 1 + place, token]), abs=2e-3)


def test_several_samples_of_one_prompt(llm, served, chats):
    from vllm import SamplingParams

    ids, spans = chats.prompt([("system", chats.text(30)), ("user", chats.text(50))])
    sampling = SamplingParams(n=4, temperature=1.5, seed=5, max_tokens=6, ignore_eos=True, logprobs=0)
    first = llm.generate([{"prompt_token_ids": ids}], sampling, use_tqdm=False)[0].outputs
    again = llm.generate([{"prompt_token_ids": ids}], sampling, use_tqdm=False)[0].outputs
    assert [o.token_ids for o in first] == [o.token_ids for o in again]
    assert len({tuple(o.token_ids) for o in first}) > 1
    for output in first:  # whatever was drawn, its probability under the mask is what the engine says
        row = hand_oracle.logits(served[1], ids + list(output.token_ids), spans).log_softmax(-1)
        for place, (token, found) in enumerate(zip(output.token_ids, output.logprobs, strict=True)):
            assert found[token].logprob == pytest.approx(float(row[len(ids) - 1 + place, token]), abs=2e-3)


def test_an_abort_in_the_middle_of_a_prefill_leaves_nothing_behind(llm, served, chats):
    llm.reset_prefix_cache()
    start = free_blocks(llm)
    ids, spans = chats.prompt([("system", chats.text(100)), ("user", chats.text(120)), ("user", chats.text(110))])
    llm.enqueue([{"prompt_token_ids": ids}] * 3, parameters(), use_tqdm=False)
    core = llm.llm_engine
    names = list(core.output_processor.request_states)
    core.step()  # the first segments
    assert free_blocks(llm) < start
    core.abort_request(names[:2])
    core.step()
    core.abort_request(names[2:])
    while core.has_unfinished_requests():
        core.step()
    assert free_blocks(llm) == start
    assert answers(llm, [(ids, None)])[0] == [greedy(served, ids, spans)]


@pytest.mark.parametrize(
    ("override", "expected"),
    [("prefix", "flat list"), ([3], "odd"), ([0, 5000], "row of"), ([0, 260], "--max-num-batched-tokens 263")],
)
def test_a_request_that_cannot_be_served_is_refused_and_the_engine_goes_on(llm, served, chats, override, expected):
    ids, spans = chats.prompt([("user", chats.text(100))] * 3)
    with pytest.raises(VLLMValidationError, match=expected):
        answers(llm, [(ids, override)])
    assert answers(llm, [(ids, None)])[0] == [greedy(served, ids, spans)]


def test_structured_outputs(llm, served, chats):
    from vllm.sampling_params import StructuredOutputsParams

    choices = ["abba", "cafe", "hedge", "gag"]
    wanted, prompts = [], [chats.prompt([("system", chats.text(50)), ("user", chats.text(60))]) for _ in range(6)]
    for ids, spans in prompts:
        made, left = [], [chats.tokenizer(choice).input_ids for choice in choices]
        while len({tuple(choice) for choice in left}) > 1 or len(left[0]) > len(made):
            row = hand_oracle.logits(served[1], ids + made, spans)[-1]
            allowed = {choice[len(made)] for choice in left}
            made.append(max(allowed, key=lambda token: float(row[token])))
            left = [choice for choice in left if choice[: len(made)] == made]
        wanted.append(made)
    assert len({tuple(made) for made in wanted}) > 1
    asked = parameters(8, structured_outputs=StructuredOutputsParams(choice=choices))
    asked.ignore_eos = False
    outputs = llm.generate([{"prompt_token_ids": ids} for ids, _ in prompts], asked, use_tqdm=False)
    assert [list(o.outputs[0].token_ids)[: len(made)] for o, made in zip(outputs, wanted, strict=True)] == wanted
