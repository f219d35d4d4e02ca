"""Sweeps in YAML: what is read, what is chosen, and what is refused."""

from math import ceil

import pytest
import yaml

from segattn.data import DataError
from segattn.reproduction.cell import split_settings
from segattn.reproduction.settings import PRESETS, load_sweep, preset_names
from segattn.reproduction.sweep import plan


@pytest.mark.parametrize("name", preset_names())
def test_what_is_shipped_can_be_run(name):
    """Every cell's settings are accepted by the training they are for."""
    sweep = load_sweep(name)
    assert {"causal", "segments", "untuned"} <= set(sweep.arms)
    for names in plan(sweep):
        if names.arm != "untuned":
            given = sweep.for_cell(names.data, names.arm)
            settings, sft, model = split_settings({**given, "use_cpu": True, "bf16": False}, "m", "o", 1, 4)
            assert (settings.attention == "causal") == (names.arm.startswith("causal"))
            assert model.lora_r == 32
            assert sft.seed == 1


def test_the_paper_s_adapter():
    _, sft, model = split_settings(
        {**load_sweep("paper").for_cell("commonsense", "segments"), "use_cpu": True}, "m", "o", 0, 4
    )
    assert (model.lora_r, model.lora_alpha, model.lora_dropout) == (32, 64, 0.05)
    assert model.lora_target_modules == ["q_proj", "v_proj"]
    assert sft.num_train_epochs == 3


def test_every_key_of_the_shipped_files_is_used():
    for file in PRESETS.glob("*.yaml"):
        raw = yaml.safe_load(file.read_text())
        sweep = load_sweep(str(file)).to_dict()
        for key, value in raw.items():
            if key not in ("data", "arms", "seeds"):
                assert sweep[key] == value


def test_an_arm_goes_before_its_data_and_that_before_all(sweep_file, content):
    content["data"]["colors"]["train"] |= {"learning_rate": 2e-2, "max_steps": 7}
    sweep = load_sweep(sweep_file(arms={"a": {"learning_rate": 3e-2}, "b": None}))
    assert sweep.for_cell("colors", "a")["learning_rate"] == 3e-2
    assert sweep.for_cell("colors", "b")["learning_rate"] == 2e-2
    assert sweep.for_cell("colors", "b")["max_steps"] == 7
    assert sweep.for_cell("colors", "b")["lora_r"] == 4


def test_a_share_of_the_steps_opens_the_segments():
    given = {"max_steps": 40, "opening_steps": 0.25, "use_cpu": True}
    assert split_settings(given, "m", "o", 0, 4)[0].opening_steps == 10
    assert split_settings({**given, "opening_steps": 3}, "m", "o", 0, 4)[0].opening_steps == 3


@pytest.mark.parametrize(("points", "steps"), [(1, [60]), (4, [15, 30, 45, 60])])
def test_points_of_a_run(points, steps):
    """A share of the steps, as transformers reads it: rounded up; 1 would be a step, not a share."""
    sft = split_settings({"max_steps": 60, "use_cpu": True, "bf16": False}, "m", "o", 0, points)[1]
    for share in (sft.eval_steps, sft.save_steps):
        assert 0 < share < 1
        assert list(range(ceil(share * 60), 61, ceil(share * 60))) == steps


def test_what_is_chosen_is_run(sweep_file, tiny):
    file = sweep_file()
    sweep = load_sweep(file, {"models": ["owner/other", "tiny"], "arms": ["segments"], "seeds": [3, 4]})
    assert sweep.models == {"other": "owner/other", "tiny": tiny}
    assert [tuple(names) for names in plan(sweep)] == [
        ("other", "colors", "segments", 3),
        ("tiny", "colors", "segments", 3),
        ("other", "colors", "segments", 4),
        ("tiny", "colors", "segments", 4),
    ]
    with pytest.raises(DataError, match="has no arms segment; it has causal, segments, untuned"):
        load_sweep(file, {"arms": ["segment"]})


def test_the_untuned_model_is_scored_once(sweep_file):
    cells = plan(load_sweep(sweep_file(seeds=[5, 6])))
    assert [(names.arm, names.seed) for names in cells] == [
        ("causal", 5), ("segments", 5), ("untuned", 5), ("causal", 6), ("segments", 6),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"learning_rat": 1}}, "learning_rat is no setting of `segattn train`"),
        ({"arms": {"x": {"output_dir": "y"}}}, "output_dir is set by the sweep itself"),
        ({"arms": {"a/b": {}}}, "expected a name without '/'"),
        ({"arms": {}}, "the sweep has no arms"),
        ({"seeds": ["x"]}, "is no sweep"),
        ({"colour": 1}, "is no sweep"),
        ({"data": {"x": {"path": "y", "scoring": ["guess"]}}}, "expected likelihood, generation, or both"),
        ({"data": {"x": {"path": "y", "test_items": 0}}}, "test_items of the data set y is 0"),
        ({"data": {"x": {"paths": "y"}}}, "is no sweep"),
        ({"curve_points": 0}, "curve_points of the sweep is 0; expected a number, at least 1"),
        ({"batch_size": "many"}, "batch_size of the sweep is 'many'"),
        ({"masks": "causal"}, "masks of the sweep is 'causal'; expected both or own"),
        ({"arms": {"x": {"adapt": 80}}}, "adapt of the arm x is 80; expected settings of `segattn adapt`"),
        ({"arms": {"x": {"adapt": {"step": 1}}}}, "adapt of the arm x: step is no setting of `segattn adapt`"),
        ({"arms": {"x": {"adapt": {"seed": 1}}}}, "adapt of the arm x: seed is set by the sweep itself"),
        ({"arms": {"x": {"adapt": {"steps": 1}}}}, "expected attention: causal"),
        ({"train": {"adapt": {}}}, "adapt is no setting of `segattn train`"),
    ],
)
def test_bad_files_are_refused(sweep_file, changes, message):
    with pytest.raises(DataError, match=message):
        load_sweep(sweep_file(**changes))


def test_files_that_are_no_sweep(tmp_path):
    with pytest.raises(DataError, match="one of long-prompts, paper, smollm2"):
        load_sweep("papers")
    file = tmp_path / "x.yaml"
    for text, message in (("a: [", "is no YAML"), ("- 1", "holds a list")):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            load_sweep(str(file))
