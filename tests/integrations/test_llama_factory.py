"""LLaMA-Factory under segments: its refusals, with a stand-in where it is not installed, and real runs where it is."""

import importlib.util
import shutil
import sys
import types
from pathlib import Path

import pytest
import yaml

import segattn
from cli.tiny_chat import make_tokenizer, save_checkpoint
from integrations.hand_loss import assert_under_segments, record_steps
from integrations.test_axolotl import write_chats
from segattn.integrations.llama_factory import train

INSTALLED = importlib.util.find_spec("llamafactory") is not None
EXAMPLES = Path(__file__).parents[2] / "examples" / "llama-factory"


@pytest.fixture
def stand_in(monkeypatch):
    """A llamafactory whose parser takes every option as it is and whose training only notes the callbacks."""
    runs = []
    modules = {
        "llamafactory": {},
        "llamafactory.hparams": {
            "read_args": lambda args: args,
            "get_train_args": lambda args: [types.SimpleNamespace(**args)],
        },
        "llamafactory.model": {"load_tokenizer": lambda options: {"tokenizer": make_tokenizer()}},
        "llamafactory.train": {},
        "llamafactory.train.tuner": {"run_exp": lambda args, callbacks: runs.append(callbacks)},
    }
    for name, members in modules.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return runs


@pytest.mark.parametrize(
    "option",
    [
        {"stage": "dpo"},
        {"packing": True},
        {"neat_packing": True},
        {"train_on_prompt": True},
        {"streaming": True},
        {"use_unsloth": True},
        {"shift_attn": True},
        {"mixture_of_depths": "convert"},
        {"enable_liger_kernel": True},
        {"use_mca": True},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_that_lose_the_mask_are_refused_by_name(stand_in, option):
    name, value = next(iter(option.items()))
    with pytest.raises(segattn.UnsupportedModelError, match=f"^{name}: {value} "):
        train({"stage": "sft", **option})
    assert stand_in == []


def test_segments_are_those_of_the_models_own_template(stand_in):
    train(yaml.safe_load((EXAMPLES / "segments.yaml").read_text(encoding="utf-8")), policy="prefix")
    ((callback,),) = stand_in
    assert callback.segmenter.to_dict() == segattn.Segmenter.from_tokenizer(make_tokenizer(), policy="prefix").to_dict()


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="llamafactory is not installed")
@pytest.mark.parametrize(
    "options",
    [{}, {"template": "chatml"}, {"disable_gradient_checkpointing": True}],
    ids=["own template", "replaced template", "no checkpointing"],
)
def test_llama_factory_trains_every_step_under_segments(tmp_path, monkeypatch, options):
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "smollm2")
    write_chats(tmp_path / "chats.jsonl")
    shutil.copy(EXAMPLES / "dataset_info.json", tmp_path)
    steps = record_steps(monkeypatch)
    config = yaml.safe_load((EXAMPLES / "segments.yaml").read_text(encoding="utf-8"))
    train({**config, "finetuning_type": "full", "max_steps": 2, "per_device_train_batch_size": 2, **options})
    assert len(steps) == 2
    for step in steps:
        assert_under_segments(step)
    model, _ = segattn.from_pretrained(tmp_path / "runs" / "llama-factory")
    assert segattn.is_enabled(model)
