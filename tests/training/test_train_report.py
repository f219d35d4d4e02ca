"""The page of a training run: what a reader finds, also where the file lacks half of it."""

import copy
import json
import math
import re
import shlex
from dataclasses import asdict

import pytest
from trl import TrlParser
from typer.testing import CliRunner

from evaluation.test_report import Page
from segattn.cli.main import app
from segattn.reports.page import ReportError
from segattn.training import ModelSettings, SFTSettings, TrainSettings, train
from segattn.training import report as report_module
from segattn.training.adapt_settings import AdaptSettings
from segattn.training.flags import changed_flags, train_command
from segattn.training.report import REPORT_FILE, report_run, write_train_report
from segattn.training.result import curve_of
from training.conftest import make_samples

TRAINED = {
    "result": {
        "output_dir": "runs/my run",
        "steps": 40,
        "interrupted": False,
        "curve": [
            {"step": 0, "loss": 3.25, "opening_loss": 2.5},
            {"step": 20, "loss": 0.5, "opening_loss": None},
            {"step": 40, "loss": 0.75, "opening_loss": None},
        ],
        "train_losses": [[10, 2.0], [20, 1.0], [30, 0.625], [40, 0.5]],
        "samples": 1234,
        "dropped": 5,
        "cut": 6,
        "removed_tokens": 77,
        "held_out": 200,
        "rows": 310,
        "tokens": 98765,
        "answer_tokens": 4321,
        "speed": [
            {
                "step": step,
                "tokens_per_second": 1000.0 + step,
                "answer_tokens_per_second": 100.0,
                "padding_share": 0.125,
            }
            for step in (10, 20, 30, 40)
        ],
        "seconds": {"load": 1.5, "train": 60.25},
    },
    "command": "segattn train --data 'my data' --opening_steps 20",
    "flags": {"data": "my data", "opening_steps": 20, "lora_target_modules": ["q_proj", "v_proj"]},
    "finished": "2026-01-02T03:04:05+00:00",
    "environment": {"torch": "2.13.0", "processor": "<script>alert(1)</script>"},
    "settings": {"data": "some/my data", "attention": "segments"},
    "model": {"model_name_or_path": "/home/someone/models/tiny"},
}
INTERVAL = {"value": 0.5, "low": 0.25, "high": 0.75}
ADAPTED = {
    "result": {
        "output_dir": "runs/adapted",
        "steps": 40,
        "interrupted": False,
        "prompts": 320,
        "dropped": 1,
        "repeated": 2,
        "answer_tokens": 4000,
        "curve": [[0, 1.5], [40, 0.0625]],
        "train_losses": [[20, 0.25], [40, 0.125]],
        "held_out": {"base, causal": [{}] * 64},
        "adapter_bytes": 1234567,
        "seconds": {"load": 1.0},
    },
    "settings": {**AdaptSettings().to_dict(), "steps": 40, "compare_sft": True, "output_dir": "runs/adapted"},
    "environment": {},
    "report": {"students": {"adapted, segments": dict.fromkeys(("kl", "top1", "exact", "prefix"), INTERVAL)}},
}


def page_of(content, folder):
    page = Page()
    page.source = write_train_report(content, folder / "page.html").read_text()
    page.feed(page.source)
    page.text = " ".join(" ".join(page.texts).split())
    return page


def changed(**result):
    content = copy.deepcopy(TRAINED)
    content["result"].update(result)
    return content


def test_the_page_holds_the_figures_of_the_run(tmp_path):
    page = page_of(TRAINED, tmp_path)
    assert "Fine-tuning under segments" in page.text
    assert "tiny, my data, 40 steps, 2026-01-02 03:04:05+00:00" in page.text
    assert "Held-out answer loss: 3.2500 at step 0, 0.7500 at step 40." in page.text
    assert "The lowest was 0.5000 at step 20: what was saved is the model of the last step." in page.text
    assert "Median 1,025 tokens per second without padding, 100 of them of answers." in page.text
    table = page.cells
    rows = {
        "samples": "1,234", "samples cut": "6", "tokens cut away": "77", "packed rows": "310", "train": "60.25",
        "padding, share of all positions": "12.5 %", "held-out samples": "200", "torch": "2.13.0",
        "lora_target_modules": "q_proj v_proj",
    }  # fmt: skip
    for name, value in rows.items():
        assert value in [table[place + 1] for place, cell in enumerate(table[:-1]) if cell == name], name
    row = table.index("20")
    assert table[row : row + 4] == ["20", "1.0000", "0.5000", ""]
    assert "segattn train --data 'my data' --opening_steps 20" in page.text
    assert 'segattn.from_pretrained("runs/my run")' in page.text
    assert "segattn chat --model 'runs/my run'" in page.text
    assert "/home/someone" not in page.source


def test_it_is_one_file_that_loads_nothing_and_escapes_everything(tmp_path):
    page = page_of(TRAINED, tmp_path)
    assert page.loads == []
    assert not re.search(r"@import|url\((?!#)", page.source)
    assert "script" not in page.tags
    assert page.tags.count("svg") == 2
    assert page.tags.count("caption") == page.tags.count("table")
    assert "prefers-color-scheme: dark" in page.source
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_what_is_not_a_number_is_said_and_leaves_a_gap(tmp_path):
    losses = [[10, 2.0], [20, math.nan], [30, math.inf], [40, 0.5]]
    curve = [{"step": 0, "loss": math.nan, "opening_loss": None}, {"step": 40, "loss": -1.0, "opening_loss": None}]
    content = json.loads(json.dumps(changed(train_losses=losses, curve=curve)))
    page = page_of(content, tmp_path)
    assert "A loss was not a finite number, first at step 0: do not trust this model." in page.text
    assert "nan at step 0, -1.0000 at step 40" in page.text
    assert "nan" not in " ".join(re.findall(r' d="([^"]*)"', page.source))


@pytest.mark.parametrize("name", [*TRAINED["result"], *(name for name in TRAINED if name != "result")])
def test_whatever_is_missing_or_null_the_rest_is_shown(tmp_path, name, monkeypatch):
    monkeypatch.setattr(report_module, "svg", lambda figure, text: "<svg></svg>")
    for value in (None, "missing"):
        content = copy.deepcopy(TRAINED)
        place = content["result"] if name in content["result"] else content
        if value is None:
            place[name] = None
        else:
            del place[name]
        page = page_of(content, tmp_path)
        assert "Use it" in page.text
        assert "None" not in page.text


def test_mixed_training_shows_both_masks(tmp_path):
    history = [{"step": 0, "eval_loss": 2.5}, {"step": 0, "eval_causal_loss": 1.75}, {"step": 4, "eval_loss": 0.5}]
    curve = [asdict(point) for point in curve_of(history)]
    page = page_of(changed(curve=curve), tmp_path)
    assert page.cells[page.cells.index("step") :][:5] == ["step", "training", "held-out", "held-out, causally", "0"]
    row = page.cells.index("0")
    assert page.cells[row : row + 4] == ["0", "", "2.5000", "1.7500"]


def test_a_run_of_which_nothing_is_known_has_a_page_too(tmp_path):
    page = page_of({"result": {}}, tmp_path)
    assert "No held-out data was scored." in page.text
    assert "Nothing was logged." in page.text
    assert page.tags.count("svg") == 0


def test_an_interrupted_run_says_how_to_go_on(tmp_path):
    page = page_of(changed(interrupted=True, steps=7), tmp_path)
    assert "Stopped early, after step 7; --resume_from_checkpoint last goes on with the run." in page.text


def test_long_runs_keep_a_short_table_with_every_evaluation(tmp_path):
    losses = [[step, 1.0 / step] for step in range(1, 2001)]
    page = page_of(changed(train_losses=losses, curve=[{"step": s, "loss": 0.5} for s in (7, 1999)]), tmp_path)
    body = page.source[page.source.index("<details>") : page.source.index("</details>")]
    assert 150 < body.count("<tr>") < 250
    for step in (7, 1999):
        assert f'<th scope="row">{step}</th>' in body


def test_a_conversion_has_its_measures_and_its_command(tmp_path):
    page = page_of(ADAPTED, tmp_path)
    assert "Conversion without labels" in page.text
    assert "Held-out KL per answer token: 1.5000 at step 0, 0.0625 at step 40." in page.text
    assert page.cells.count("0.500 (0.250 to 0.750)") == 4
    assert "1,234,567" in page.cells
    assert "segattn adapt --steps 40 --compare-sft" in page.text
    del ADAPTED["report"]  # as it is before it is measured
    assert "Agreement with" not in page_of(ADAPTED, tmp_path).text


def test_the_command_gives_every_setting_again():
    settings = TrainSettings(data="a b/c.jsonl", opening_steps=3, too_long="drop", held_out_samples=0)
    sft = SFTSettings(
        "out put", max_steps=3, packing=True, eval_strategy="steps", eval_steps=2, report_to=["tensorboard"],
        lr_scheduler_type="cosine_with_restarts", lr_scheduler_kwargs={"num_cycles": 2}, logging_steps=5,
        disable_tqdm=True, resume_from_checkpoint="last", hub_token="secret",
    )  # fmt: skip
    model = ModelSettings(model_name_or_path="m", lora_target_modules=["q_proj", "v_proj"], use_dora=True)
    flags = changed_flags(settings, sft, model)
    assert "secret" not in json.dumps(flags)
    words = shlex.split(train_command(flags))
    assert words[:2] == ["segattn", "train"]
    parser = TrlParser((TrainSettings, SFTSettings, ModelSettings), allow_abbrev=False)
    again = parser.parse_args_and_config(words[2:])
    for name in ("disable_tqdm", "resume_from_checkpoint", "hub_token"):
        setattr(again[1], name, getattr(sft, name))
    assert again[0] == settings
    assert again[2] == model
    assert asdict(again[1]) == asdict(sft)
    assert changed_flags(TrainSettings(), SFTSettings(), ModelSettings()) == {}


def test_what_the_command_line_cannot_switch_off_is_said(tmp_path):
    flags = changed_flags(TrainSettings(), SFTSettings(max_length=None), ModelSettings())
    assert flags == {"max_length": None}
    assert train_command(flags) is None
    page = page_of({**TRAINED, "flags": flags, "command": None}, tmp_path)
    assert "Set in Python, which the command line cannot switch off: max_length." in page.text


def test_a_run_leaves_its_page_and_the_page_can_be_written_again(tiny, tmp_path):
    settings = SFTSettings(
        str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=2,
        logging_steps=1,
        bf16=False,
        disable_tqdm=True,
    )
    model = ModelSettings(model_name_or_path=tiny, lora_r=2)
    result = train(TrainSettings(), settings, model, samples=make_samples(4), held_out=make_samples(2))
    page = tmp_path / "out" / REPORT_FILE
    before = page.read_text()
    assert f"{result.train_losses[-1][1]:.4f}" in before
    assert f"{result.curve[-1].loss:.4f}" in before
    assert "passed in Python" in before
    page.unlink()
    written = CliRunner().invoke(app, ["report", str(tmp_path / "out")])
    assert written.exit_code == 0, written.output
    assert written.stdout.strip() == str(page)
    assert page.read_text() == before


def test_the_command_line_finds_each_kind_of_run(tmp_path):
    for name, content in (("adapt_result.json", ADAPTED), ("training_result.json", TRAINED)):
        folder = tmp_path / name.removesuffix(".json")
        folder.mkdir()
        (folder / name).write_text(json.dumps(content))
        for run in (folder, folder / name):
            result = CliRunner().invoke(app, ["report", str(run)])
            assert result.exit_code == 0, result.output
            assert result.stdout.strip() == str(folder / REPORT_FILE)
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2
    assert "training_result.json" in result.stderr


def test_a_page_that_fails_does_not_fail_the_run(tmp_path, caplog, monkeypatch):
    file = tmp_path / "training_result.json"
    file.write_text(json.dumps({"result": {"curve": [{"loss": 1.0}]}}))
    assert report_run(file) is None
    assert "the run is saved" in caplog.text
    file.write_text(json.dumps(TRAINED))
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert report_run(file) is None
    assert "pip install 'segattn[viz]'" in caplog.text
    with pytest.raises(ReportError, match=r"expected a training_result\.json"):
        write_train_report({}, tmp_path / "page.html")
