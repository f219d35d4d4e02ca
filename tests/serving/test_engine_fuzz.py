"""vLLM with segments against stock Hugging Face models with hand-made masks: the same tokens, in every mode of work."""

import random

import pytest

pytest.importorskip("vllm", reason="needs vLLM in an environment of its own: make test-serve")

from serving import hand_oracle
from serving.engines import answers, engine, free_blocks, scheduler_of
from serving.tiny_served import Chats

pytestmark = pytest.mark.vllm

COUNT = 6
CONFIGURATIONS = {
    "default": {},
    "one request at a time": {"max_num_seqs": 1},
    # Whole prompts, several of them in a step: a row of the kernel for each of their pieces.
    "many rows": {"max_num_seqs": 64, "max_num_batched_tokens": 512},
    # Prompts of up to 400 tokens in steps of 120: cut at segments, shared by requests.
    "small steps": {"max_num_batched_tokens": 120, "max_num_seqs": 8},
    "no prefix cache": {"enable_prefix_caching": False},
    "preemption": {"num_gpu_blocks_override": 21, "max_num_seqs": 4, "max_num_batched_tokens": 130},
    "homogeneous steps": {"additional_config": {"segment_attention": {"per_request": False}}, "max_num_seqs": 8},
    "priority": {"scheduling_policy": "priority", "max_num_batched_tokens": 130},
}


def fuzz_requests(seed=0, count=48):
    """Prompts that share beginnings in many ways: chats, causal requests, and random runs given as explicit spans."""
    chats, rng = Chats(seed), random.Random(seed)
    system = chats.text(45)
    openings = [chats.text(length) for length in (37, 70)]
    requests = []
    while len(requests) < count:
        opening = rng.choice(openings)
        turns = [("system", system)] if rng.random() < 0.7 else []
        turns.append(("user", opening + chats.text(rng.randint(1, 40))))
        if rng.random() < 0.4:
            turns += [("assistant", chats.text(rng.randint(1, 30))), ("user", chats.text(rng.randint(1, 60)))]
        ids, spans = chats.prompt(turns)
        kind = rng.choice(("segments", "segments", "causal", "runs"))
        if kind == "runs":
            cuts = sorted(rng.sample(range(len(ids) + 1), 2 * rng.randint(1, 4)))
            spans = [(start, min(end, start + 110)) for start, end in zip(cuts[::2], cuts[1::2], strict=True)]
            requests.append((ids, spans, [bound for span in spans for bound in span]))
        else:
            requests.append((ids, [] if kind == "causal" else spans, "causal" if kind == "causal" else None))
    # The same tokens under another segmentation, the hardest neighbours in a cache.
    for ids, _, override in requests[: count // 4]:
        if override != "causal":
            requests.append((ids, [], "causal"))
    return requests


@pytest.fixture(scope="module")
def fuzz(served):
    """(requests, what each must be answered)."""
    requests = fuzz_requests()
    wanted = []
    for ids, spans, _ in requests:
        tokens, margins = hand_oracle.greedy(served[1], ids, spans, COUNT)
        assert min(margins) > 1e-3, "a tie in the oracle compares nothing; take another seed"
        wanted.append(tokens)
    return requests, wanted


def orders(requests, seed=1):
    """Three orders in which the requests arrive."""
    places = list(range(len(requests)))
    shuffled = places[:]
    random.Random(seed).shuffle(shuffled)
    return [places, places[::-1], shuffled]


def equal_in(llm, fuzz, places):
    requests, wanted = fuzz
    got, _ = answers(llm, [(requests[i][0], requests[i][2]) for i in places], count=COUNT)
    return sum(tokens == wanted[i] for tokens, i in zip(got, places, strict=True))


def test_the_oracle_tells_segments_from_causal(served, fuzz):
    requests, wanted = fuzz
    with_segments = [(ids, tokens) for (ids, spans, _), tokens in zip(requests, wanted, strict=True) if spans]
    other = [hand_oracle.greedy(served[1], ids, [], COUNT)[0] for ids, _ in with_segments]
    assert sum(a != b for (_, a), b in zip(with_segments, other, strict=True)) > 0.9 * len(with_segments)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_fuzz(name, served, fuzz, record_property):
    with engine(served[0], **CONFIGURATIONS[name]) as llm:
        start = free_blocks(llm)
        preempted = count_preemptions(scheduler_of(llm))
        got = [equal_in(llm, fuzz, places) for places in orders(fuzz[0])]
        print(f"\n{name}: identical {got} of {len(fuzz[0])}; preemptions {len(preempted)}")
        assert got == [len(fuzz[0])] * 3
        assert free_blocks(llm) == start
        assert bool(preempted) == (name == "preemption")


def test_fuzz_with_async_scheduling(served, fuzz, monkeypatch):
    """vLLM plans a step before the last one has ended on GPUs; on CPUs its platform switches that off."""
    from vllm.platforms.cpu import CpuPlatform

    stock = CpuPlatform.check_and_update_config.__func__

    def asynchronous(cls, vllm_config):
        stock(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", classmethod(asynchronous))
    with engine(served[0], max_num_batched_tokens=120) as llm:
        assert type(scheduler_of(llm)).__name__ == "AsyncSegmentScheduler"
        assert llm.llm_engine.engine_core.engine_core.batch_queue is not None
        got = [equal_in(llm, fuzz, places) for places in orders(fuzz[0])]
    print(f"\nasync scheduling: identical {got} of {len(fuzz[0])}")
    assert got == [len(fuzz[0])] * 3


def test_the_stock_block_hash_answers_wrongly(served, fuzz, monkeypatch):
    """The control of the fuzz: with blocks keyed by tokens alone, as vLLM keys them, many answers are wrong."""
    monkeypatch.setattr("segattn.serving.block_hashes.segment_keys", lambda ids, spans: ())
    with engine(served[0]) as llm:
        got = [equal_in(llm, fuzz, places) for places in orders(fuzz[0])]
    print(f"\nstock block hash: identical {got} of {len(fuzz[0])}")
    assert max(got) < 0.8 * len(fuzz[0])


def count_preemptions(scheduler):
    """A list that grows with every preemption."""
    seen, stock = [], scheduler._preempt_request

    def counting(*args, **kwargs):
        seen.append(1)
        return stock(*args, **kwargs)

    scheduler._preempt_request = counting
    return seen
