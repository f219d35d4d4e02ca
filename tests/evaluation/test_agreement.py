"""The report of a conversion: means with intervals, and paired comparisons."""

import pytest

from segattn.errors import SegmentAttentionError
from segattn.evaluation.agreement import agreement_report


def row(kl, exact=False, tokens=4):
    return {"kl": kl, "top1": 1 - kl / 10, "loss": kl + 1, "exact": exact, "prefix": 0.5, "tokens": tokens}


BEFORE = [row(2.0 + 0.1 * (number % 3)) for number in range(30)]
AFTER = [row(0.2 + 0.1 * (number % 3), exact=number % 2 == 0) for number in range(30)]


def test_means_over_prompts_with_their_intervals():
    students = agreement_report({"before": BEFORE, "after": AFTER})["students"]
    assert students["before"]["kl"]["value"] == pytest.approx(2.1)
    assert students["before"]["kl"]["low"] < 2.1 < students["before"]["kl"]["high"]
    assert students["after"]["exact"]["value"] == 0.5
    # The Wilson interval of 0 of 30 by hand: (0, z^2 / (n + z^2)).
    z = 1.959964
    assert students["before"]["exact"] == {
        "value": 0.0,
        "low": 0.0,
        "high": pytest.approx(z**2 / (30 + z**2), abs=1e-5),
    }
    assert (students["after"]["prompts"], students["after"]["tokens"]) == (30, 120)


def test_differences_are_paired_and_of_what_was_measured():
    report = agreement_report({"before": BEFORE, "after": AFTER}, [("after", "before"), ("after", "sft")])
    [(name, found)] = report["comparisons"].items()
    assert name == "after - before"
    # Every pair differs by 1.8: a paired interval has no width, and an unpaired one would.
    for bound in ("value", "low", "high"):
        assert found["kl"][bound] == pytest.approx(-1.8)
    assert found["kl"]["shown"]
    assert found["exact"]["shown"]
    assert not found["prefix"]["shown"]


def test_nothing_measured_is_an_empty_report_and_no_prompts_are_refused():
    assert agreement_report({}, [("after", "before")]) == {"students": {}, "comparisons": {}}
    with pytest.raises(SegmentAttentionError, match="'after' was measured on no prompts"):
        agreement_report({"after": []})
    with pytest.raises(SegmentAttentionError, match="expected the same samples"):
        agreement_report({"a": BEFORE, "b": BEFORE[:3]}, [("a", "b")])
