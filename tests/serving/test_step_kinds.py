"""A small scheduler of our own drives the plan: everything is computed, in steps that a backend can run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segattn.serving.chunks import pieces, step_is_causal
from segattn.serving.limits import StepLimits
from segattn.serving.step_kinds import StepPlan
from serving.layouts import rows

SEQS = 3


class Request:
    def __init__(self, length, spans):
        self.length, self.spans, self.computed, self.answered = length, spans, 0, 0

    @property
    def wanted(self):
        return max(self.length - self.computed, 1)


def one_step(running, waiting, budget, plan, break_at_zero):
    """As vLLM's loops: running requests first; 0.32 stops at the first that cannot start, 0.33 goes on."""
    step = []
    for request in running:
        tokens = plan.length(request.spans, request.computed, min(request.wanted, budget), waiting=False)
        if tokens:
            step.append((request, tokens))
            budget -= tokens
    for request in list(waiting):
        if budget == 0 or len(running) == SEQS:
            break
        tokens = plan.length(request.spans, request.computed, min(request.wanted, budget), waiting=True)
        if tokens == 0:
            if break_at_zero:
                break
            continue
        waiting.remove(request)
        running.append(request)
        step.append((request, tokens))
        budget -= tokens
    return step


@given(st.lists(rows(), min_size=1, max_size=6), st.booleans(), st.booleans(), st.integers(0, 8))
def test_every_request_ends_and_every_step_can_be_run(layouts, per_request, break_at_zero, spare):
    requests = [Request(*layout) for layout in layouts]
    longest = max((end - start for r in requests for start, end in r.spans), default=1)
    limits = StepLimits(longest + SEQS - 1 + spare, SEQS)
    assert limits.longest_segment >= longest
    running, waiting = [], list(requests)
    for _ in range(40 * len(requests) * 12):
        if not running and not waiting:
            break
        plan = StepPlan(per_request, SEQS, len(running))
        step = one_step(running, waiting, limits.max_num_batched_tokens, plan, break_at_zero)
        assert step, "a step that computes nothing would never end"
        assert sum(tokens for _, tokens in step) <= limits.max_num_batched_tokens
        chunks = [pieces(r.spans, r.computed, r.computed + tokens) for r, tokens in step]
        if per_request:
            assert sum(map(len, chunks)) <= SEQS, "vLLM's buffers have no room for more rows"
        else:
            step_is_causal(chunks)  # raises for a mixed step
        for request, tokens in step:
            request.computed += tokens
            request.answered += request.computed >= request.length
            if request.answered == 5:
                running.remove(request)
    assert all(request.answered == 5 for request in requests)


@pytest.mark.parametrize("break_at_zero", [True, False])
def test_a_long_segment_is_not_starved_by_a_stream_of_short_ones(break_at_zero):
    long = Request(20, ((0, 20),))
    running, waiting, steps = [], [Request(4, ()), long], 0
    for _ in range(60):
        steps += 1
        # Each short one ends after its first answer; two new ones arrive with every step.
        waiting += [Request(5, ()), Request(5, ())]
        for request, tokens in one_step(running, waiting, 22, StepPlan(True, SEQS, len(running)), break_at_zero):
            request.computed += tokens
            if request is not long and request.computed >= request.length:
                running.remove(request)
        if long.computed:
            break
    assert steps < 5


def test_without_closing_the_step_it_would_starve():
    """The test above can fail: one that skips what does not fit takes short requests for ever."""
    plan = StepPlan(True, 8, 1)
    assert plan.length(((0, 20),), 0, 10, waiting=True) == 0
    assert plan.length((), 0, 5, waiting=True) == 0
    assert plan.length((), 0, 5, waiting=False) == 5
    assert StepPlan(True, 8, 1).length((), 0, 5, waiting=True) == 5


def test_one_kind_per_step_where_the_backend_has_one_flag():
    plan = StepPlan(False, 8, 4)
    assert plan.length((), 0, 5, waiting=False) == 5
    assert plan.length(((0, 6),), 0, 10, waiting=False) == 0
    assert plan.length(((0, 1), (1, 4)), 0, 10, waiting=False) == 1
    assert plan.length((), 30, 1, waiting=False) == 1
    assert StepPlan(True, 8, 1).length(((0, 6),), 0, 10, waiting=False) == 10


def test_nothing_to_compute_stays_nothing():
    assert StepPlan(True, 8, 1).length((), 5, 0, waiting=False) == 0


def test_a_whole_prompt_is_one_step_where_each_row_has_a_flag():
    prompt = ((0, 6), (6, 9))
    assert StepPlan(True, 8, 0).length(prompt, 0, 12, waiting=True) == 12
    assert StepPlan(False, 8, 0).length(prompt, 0, 12, waiting=True) == 6


def test_rows_are_shared_out_and_each_running_request_keeps_one():
    prompt = ((0, 6), (6, 9))
    plan = StepPlan(True, 5, 2)
    assert plan.length(prompt, 0, 12, waiting=False) == 12  # three rows; a fourth is kept for the other one
    assert plan.length(prompt, 0, 12, waiting=False) == 9  # that, and the last
    assert plan.length((), 0, 5, waiting=True) == 0
    full = StepPlan(True, 2, 2)
    assert [full.length(prompt, 0, 12, waiting=False) for _ in range(2)] == [6, 6]
