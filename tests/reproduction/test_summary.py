"""Numbers of a summary against small computations of their own, from the files."""

import json
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from reproduction.made_up_cells import made_up_sweep, write_cells
from segattn.evaluation.power import holm
from segattn.reports.page import ReportError
from segattn.reproduction.finished_cells import read_cells
from segattn.reproduction.length_strata import quantile_edges, strata
from segattn.reproduction.summary import summarize


def right(contents, arm, mask, scoring="likelihood", data="banking77"):
    """seed -> id -> 0 or 1, straight from the contents of the files."""
    return {
        content["names"]["seed"]: dict(zip(one["ids"], one["correct"], strict=True))
        for content in contents
        for one in content["evaluations"]
        if content["names"]["arm"] == arm and content["names"]["data"] == data
        if (one["attention"], one["scoring"]) == (mask, scoring)
    }


def mean_of(answers):
    return fmean(fmean(row.values()) for row in answers.values())


@pytest.fixture
def contents():
    return made_up_sweep(
        {"segments": 0.4}, items=80, data=("banking77", "other"), scorings=("likelihood", "generation")
    )


def read(tmp_path, contents):
    return read_cells([write_cells(tmp_path, contents)])[0]


def test_accuracies_and_differences_are_means_over_the_same_items(tmp_path, contents):
    summary = summarize(read(tmp_path, contents))
    accuracies = {(row["data"], row["scoring"], row["arm"]): row for row in summary["accuracies"]}
    assert len(accuracies) == 2 * 2 * 3
    for (data, scoring, arm), row in accuracies.items():
        mask = "segments" if arm == "segments" else "causal"
        expected = mean_of(right(contents, arm, mask, scoring, data))
        assert row["accuracy"]["value"] == pytest.approx(expected)
        assert (row["attention"], row["items"], row["seeds"]) == (mask, 80, 1 if arm == "untuned" else 3)
    assert len(summary["differences"]) == 4
    for row in summary["differences"]:
        one = right(contents, "segments", "segments", row["scoring"], row["data"])
        two = right(contents, "causal", "causal", row["scoring"], row["data"])
        each = [fmean(one[seed].values()) - fmean(two[seed].values()) for seed in (0, 1, 2)]
        assert row["of_each_seed"] == pytest.approx(each)
        assert row["difference"]["value"] == pytest.approx(fmean(each))
    corrected = holm([row["p"] for row in summary["differences"]])
    assert [row["p_corrected"] for row in summary["differences"]] == corrected
    for row in summary["mismatch"]:
        for mask in ("causal", "segments"):
            expected = mean_of(right(contents, row["arm"], mask, row["scoring"], row["data"]))
            assert row[mask]["value"] == pytest.approx(expected)


def test_single_models_are_tested_against_themselves_under_the_other_mask(tmp_path, contents):
    rows = [row for row in summarize(read(tmp_path, contents))["mismatch"] if row["comparison"]]
    expected = []
    for row in rows:
        own, other = ("segments", "causal") if row["arm"] == "segments" else ("causal", "segments")
        where = (row["scoring"], row["data"])
        one, two = (right(contents, row["arm"], mask, *where) for mask in (own, other))
        for seed in (0, 1, 2):
            gained, lost = (
                sum(first[seed][name] > second[seed][name] for name in first[seed])
                for first, second in ((two, one), (one, two))
            )
            expected.append(binomtest(gained, gained + lost).pvalue if gained + lost else 1.0)
    assert [value for row in rows for value in row["comparison"]["p_of_each_seed"]] == pytest.approx(expected)
    shown = [value for row in rows for value in row["comparison"]["models_shown"]]
    assert shown == [value < 0.05 for value in holm(expected)]
    assert any(shown)
    assert not all(shown)


def test_only_shared_items_and_seeds_are_compared(tmp_path, contents):
    """One causal seed lacks an item, and one segment seed was not run."""
    for one in contents[1]["evaluations"]:
        for name in ("ids", "lengths", "correct", "losses"):
            one[name] = one[name][1:]
    contents = [one for one in contents if (one["names"]["arm"], one["names"]["seed"]) != ("segments", 2)]
    row = summarize(read(tmp_path, contents))["differences"][0]
    assert (row["items"], row["items_left_out"], row["seeds"], row["seeds_left_out"]) == (79, 1, 2, [2])
    one = right(contents, "segments", "segments")
    two = right(contents, "causal", "causal")
    shared = list(two[0])
    each = [fmean(one[seed][name] - two[seed][name] for name in shared) for seed in (0, 1)]
    assert row["difference"]["value"] == pytest.approx(fmean(each))


def test_one_seed_speaks_of_items_only(tmp_path):
    row = summarize(read(tmp_path, made_up_sweep({"segments": 2.0}, seeds=(0,))))["differences"][0]
    assert (row["seeds"], row["shown"], row["verdict"]) == (1, True, "higher")
    assert row["detectable"] is not None


def test_curves_are_means_over_seeds(tmp_path, contents):
    summary = summarize(read(tmp_path, contents))
    curves = {(row["data"], row["arm"]): row for row in summary["loss_curves"]}
    losses = [
        [point["loss"] for point in content["training"]["curve"]]
        for content in contents
        if (content["names"]["data"], content["names"]["arm"]) == ("other", "segments")
    ]
    row = curves["other", "segments"]
    assert row["steps"] == [0, 20, 40, 60, 80]
    assert row["mean"] == pytest.approx([fmean(values) for values in zip(*losses, strict=True)])
    assert row["high"] == pytest.approx([max(values) for values in zip(*losses, strict=True)])
    # Trapezoids over the steps after the first point, all 20 apart.
    assert row["over_run"] == pytest.approx(fmean((one[1] / 2 + one[2] + one[3] + one[4] / 2) / 3 for one in losses))
    assert curves["other", "causal"]["comparison"] is None
    found = row["comparison"]["difference"]
    assert found["value"] == pytest.approx(row["over_run"] - curves["other", "causal"]["over_run"])
    assert {row["arm"] for row in summary["accuracy_curves"]} == {"causal", "segments"}


def test_arms_of_other_steps_are_not_compared_over_the_run(tmp_path, contents):
    for content in contents:
        if content["names"]["arm"] == "segments":
            content["training"]["curve"].pop()
    assert all(row["comparison"] is None for row in summarize(read(tmp_path, contents))["loss_curves"])


def test_losses_on_samples_that_were_cut_elsewhere_are_not_compared(tmp_path, contents):
    for content in contents:
        if content["names"]["arm"] == "segments" and content["names"]["data"] == "other":
            content["settings"]["max_length"] = 9999
    summary = summarize(read(tmp_path, contents))
    for name, compared in (("loss_curves", {"banking77"}), ("accuracy_curves", {"banking77", "other"})):
        assert {row["data"] for row in summary[name] if row["comparison"]} == compared
    assert {row["data"] for row in summary["loss_curves"] if row["made_up"]} == {"banking77"}


def test_no_mask_costs_an_arm_that_is_tuned_causally(tmp_path, contents):
    for content in contents:
        if content["names"]["arm"] == "segments":
            content["settings"]["trained_as"] = "causal"
    rows = summarize(read(tmp_path, contents))["loss_curves"]
    assert [row["made_up"] for row in rows] == [None] * len(rows)
    assert any(row["comparison"] for row in rows)


def test_the_mean_over_the_run_is_of_the_steps_that_all_seeds_have(tmp_path, contents):
    own = [one for one in contents if (one["names"]["arm"], one["names"]["data"]) == ("segments", "other")]
    del own[0]["training"]["curve"][:3]  # steps 0, 20 and 40
    rows = summarize(read(tmp_path, contents))["loss_curves"]
    row = next(row for row in rows if (row["arm"], row["data"]) == ("segments", "other"))
    assert row["steps"] == [60, 80]
    assert row["over_run"] == pytest.approx(
        fmean(fmean(point["loss"] for point in one["training"]["curve"][-2:]) for one in own)
    )
    assert row["comparison"] is None


def test_seeds_without_a_step_in_common_have_no_curve(tmp_path, contents):
    own = [one for one in contents if (one["names"]["arm"], one["names"]["data"]) == ("segments", "other")]
    own[0]["training"]["curve"] = own[0]["training"]["curve"][:1]
    own[1]["training"]["curve"] = own[1]["training"]["curve"][1:]
    rows = summarize(read(tmp_path, contents))["loss_curves"]
    assert ("segments", "other") not in {(row["arm"], row["data"]) for row in rows}


def test_a_curve_without_its_start_is_compared_all_the_same(tmp_path, contents):
    """The model before its first step is not part of how an arm learns."""
    whole = summarize(read(tmp_path / "whole", contents))["loss_curves"]
    for content in contents:
        if content["names"]["arm"] == "segments":
            content["training"]["curve"].pop(0)
    rows = summarize(read(tmp_path / "short", contents))["loss_curves"]
    assert [row["over_run"] for row in rows] == [row["over_run"] for row in whole]
    assert [row["comparison"] for row in rows] == [row["comparison"] for row in whole]


def test_the_mask_s_cost_that_is_made_up(tmp_path, contents):
    """Causal 4 then 2; segments 6, then 2.5, 3 and 2 of the seeds: of 2 nats 1.5, 1 and 2 are made up."""
    after = {0: 2.5, 1: 3.0, 2: 2.0}
    for content in contents:
        names = content["names"]
        if names["arm"] != "untuned":
            start, then = (4.0, 2.0) if names["arm"] == "causal" else (6.0, after[names["seed"]])
            content["training"]["curve"][:2] = [{"step": 0, "loss": start}, {"step": 20, "loss": then}]
    rows = summarize(read(tmp_path / "whole", contents))["loss_curves"]
    found = next(row for row in rows if row["arm"] == "segments")["made_up"]
    assert (found["step"], found["before"], found["after"]) == (20, 2.0, pytest.approx(0.5))
    reach = 4.302653 * 0.25 / 3**0.5  # Student's t of two degrees of freedom, standard deviation 0.25
    assert found["share"] == pytest.approx({"value": 0.75, "low": 0.75 - reach, "high": 0.75 + reach}, abs=1e-6)
    assert all(row["made_up"] is None for row in rows if row["arm"] == "causal")
    one_seed = [content for content in contents if content["names"]["seed"] == 0]
    rows = summarize(read(tmp_path / "one", one_seed))["loss_curves"]
    assert all(row["made_up"] is None for row in rows)


def test_strata_part_the_items_by_their_length(tmp_path, contents):
    cells = read(tmp_path, contents)
    rows = [row for row in strata(cells, [60, 100]) if (row["data"], row["scoring"]) == ("other", "generation")]
    lengths = next(one for one in contents if one["names"]["data"] == "other")["evaluations"][0]["lengths"]
    assert [(row["from"], row["to"]) for row in rows] == [(None, 60), (61, 100), (101, None)]
    sizes = [sum(low < length <= high for length in lengths) for low, high in ((0, 60), (60, 100), (100, 10**6))]
    assert [row["items"] for row in rows] == sizes
    answers = right(contents, "segments", "segments", "generation", "other")
    short = [str(17 + number) for number, length in enumerate(lengths) if length <= 60]
    expected = fmean(fmean(row[name] for name in short) for row in answers.values())
    assert rows[0]["arms"]["segments"]["accuracy"]["value"] == pytest.approx(expected)
    assert rows[0]["arms"]["causal"]["difference"] is None
    with pytest.raises(ReportError, match="rising"):
        strata(cells, [100, 60])


def test_the_training_cut_off_is_an_edge(tmp_path):
    rows = strata(read(tmp_path, made_up_sweep(items=120, max_length=100)))
    assert 100 in {row["to"] for row in rows}
    assert rows[0]["cut_offs"] == [100]


def test_the_edges_of_the_sweep_come_before_quarters_and_after_those_given_now(tmp_path):
    contents = made_up_sweep(items=60)
    for content in contents:
        content["settings"]["strata"] = [50, 90]
    cells = read(tmp_path, contents)
    assert [row["to"] for row in strata(cells)] == [50, 90, None]
    assert [row["to"] for row in strata(cells, [70])] == [70, None]


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.sets(st.integers(1, 300), max_size=2))
def test_quarters_hold_enough_items_and_every_cut_off(lengths, cuts):
    edges = quantile_edges(lengths, sorted(cuts))
    assert edges == sorted(set(edges))
    assert {cut for cut in cuts if min(lengths) <= cut < max(lengths)} <= set(edges)
    if not cuts:
        sizes = [
            sum(low < length <= high for length in lengths)
            for low, high in zip([0, *edges], [*edges, 10**6], strict=True)
        ]
        assert min(sizes) >= min(20, len(lengths))


def test_settings_tell_what_differs(tmp_path, contents):
    for content in contents:
        if content["names"]["data"] == "other" and content["settings"]:
            content["settings"]["steps"] = 160
        content["settings"]["path"] = str(tmp_path / "data" / "intents")
    found = summarize(read(tmp_path, contents))["settings"]
    assert found["shared"]["path"] == "intents"
    assert found["shared"]["learning_rate"] == "0.001"
    assert found["shared"]["steps"] == "80 (smollm2, banking77); 160 (smollm2, other)"
    assert found["different"]["trained_as"] == {"causal": "causal", "segments": "segments"}
    assert "seed" not in {*found["shared"], *found["different"]}


def test_attention_is_a_mean_over_seeds_and_one_prompt(tmp_path, contents):
    summary = summarize(read(tmp_path, contents))
    row = next(row for row in summary["shares_ahead"] if (row["data"], row["arm"]) == ("other", "segments"))
    patterns = [
        content["attention_pattern"]
        for content in contents
        if (content["names"]["data"], content["names"]["arm"]) == ("other", "segments")
    ]
    assert row["ahead"][3][5] == pytest.approx(fmean(one["ahead"][3][5] for one in patterns))
    assert row["mean"] == pytest.approx(fmean(fmean(fmean(layer) for layer in one["ahead"]) for one in patterns))
    maps = next(row for row in summary["attention_maps"] if row["data"] == "other")
    assert maps["arms"]["segments"] == patterns[0]["maps"]["segments"]
    assert list(maps["arms"]) == ["causal", "segments"]


def test_a_summary_is_json(tmp_path, contents):
    summary = summarize(read(tmp_path, contents))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_a_sweep_with_little_in_it(tmp_path):
    """No losses, curves, attention, causal arm or second mask: what there is is still told."""
    contents = made_up_sweep({"segments": 0.0}, seeds=(0,), items=5)[2:]
    content = {**contents[0], "training": {"steps": 3}, "attention_pattern": None}
    content["evaluations"] = [{**content["evaluations"][1], "losses": None, "chance": None}]
    summary = summarize(read(tmp_path, [content]))
    assert len(summary["accuracies"]) == len(summary["mismatch"]) == len(summary["strata"]) == 1
    assert summary["accuracies"][0]["loss"] is None
    assert summary["mismatch"][0]["causal"] is None
    assert not any(summary[name] for name in ("differences", "loss_curves", "accuracy_curves", "shares_ahead"))
