import statistics

import pytest
import torch

from segattn.bench import timing
from segattn.bench.timing import Effort, alternate, spread

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that only contestants move."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def contestant(name, seconds, log):
        def run():
            log.append(name)
            now[0] += seconds

        return run

    return contestant


def test_contestants_take_turns_and_each_begins_a_round_in_its_time(clock):
    log = []
    times = alternate({"a": clock("a", 1.0, log), "b": clock("b", 2.0, log)}, Effort(7.0, least=1), CPU)
    assert log == ["a", "b", *"ab", *"ba", *"ab"]  # the first two warm up
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3}


@pytest.mark.parametrize(
    ("effort", "rounds"),
    [
        (Effort(0.0, least=3, most=9), 3),
        (Effort(100.0, least=3, most=9), 9),
        (Effort(4.5, least=3, most=9), 5),
    ],
)
def test_rounds_follow_the_time_between_their_limits(clock, effort, rounds):
    assert len(alternate({"a": clock("a", 1.0, [])}, effort, CPU)["a"]) == rounds


def test_without_a_warm_up_every_run_counts(clock):
    log = []
    alternate({"a": clock("a", 1.0, log)}, Effort(0.0, least=2, warm_up=False), CPU)
    assert log == ["a", "a"]


def test_quartiles_stay_within_what_was_measured():
    found = spread([3.0, 1.0, 2.0])
    assert (found.median, found.low, found.high, found.rounds) == (2.0, 1.5, 2.5, 3)
    assert spread([4.0]) == timing.Spread(4.0, 4.0, 4.0, 1)
    values = [0.3, 0.1, 0.9, 0.4, 0.2, 0.8]
    assert spread(values).median == pytest.approx(statistics.median(values))
    assert min(values) <= spread(values).low <= spread(values).high <= max(values)
