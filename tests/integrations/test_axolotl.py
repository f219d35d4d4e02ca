"""The Axolotl plugin: refusals, with a stand-in for Axolotl where it is not installed, and real runs where it is."""

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest
import yaml

import segattn
from cli.tiny_chat import save_checkpoint
from integrations.hand_loss import assert_under_segments, record_steps

INSTALLED = importlib.util.find_spec("axolotl") is not None
EXAMPLE = Path(__file__).parents[2] / "examples" / "axolotl" / "segments.yaml"


@pytest.fixture
def plugin(monkeypatch):
    if not INSTALLED:
        for name in ("axolotl", "axolotl.integrations", "axolotl.integrations.base"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["axolotl.integrations.base"].BasePlugin = type("BasePlugin", (), {})
    yield importlib.import_module("segattn.integrations.axolotl").SegmentAttentionPlugin()
    if not INSTALLED:
        del sys.modules["segattn.integrations.axolotl"]


@pytest.mark.parametrize(
    "option",
    [
        {"context_parallel_size": 2},
        {"rl": "dpo"},
        {"reward_model": True},
        {"train_on_inputs": True},
        {"batch_flattening": True},
        {"attn_implementation": "flash_attention_2"},
        {"streaming": True},
        {"liger_fused_linear_cross_entropy": True},
        {"cut_cross_entropy": True},
        {"sdpa_varlen": True},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_that_lose_the_mask_are_refused_by_name(plugin, option):
    name, value = next(iter(option.items()))
    with pytest.raises(segattn.UnsupportedModelError, match=f"^{name}: {value} "):
        plugin.pre_model_load({"sample_packing": True, **option})


def test_the_config_of_the_example_is_accepted(plugin):
    config = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    assert config["plugins"] == [f"{type(plugin).__module__}.{type(plugin).__name__}"]
    plugin.pre_model_load(config)


def test_the_plugin_hands_over_a_callback_with_the_policy_of_the_config(plugin):
    (callback,) = plugin.add_callbacks_pre_trainer({"segment_attention_policy": "prefix"}, None)
    assert callback.policy == "prefix"
    (callback,) = plugin.add_callbacks_pre_trainer({}, None)
    assert callback.policy == "turns"


def test_axolotl_replaces_no_layers_unasked(plugin):
    config = {"lora_qkv_kernel": True}
    plugin.register(config)
    assert config["lora_qkv_kernel"] is True
    assert config["sdpa_varlen"] is config["lora_mlp_kernel"] is False


@pytest.fixture
def axolotl_run(tmp_path, monkeypatch):
    """Runs the example's config with a tiny model; returns the recorded steps."""
    pytest.importorskip("axolotl")
    monkeypatch.setenv("AXOLOTL_DO_NOT_TRACK", "1")
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "smollm2")
    write_chats(tmp_path / "chats.jsonl")
    steps = record_steps(monkeypatch)

    def run(**options):
        from axolotl.cli.args import TrainerCliArgs
        from axolotl.cli.config import load_cfg
        from axolotl.common.datasets import load_datasets
        from axolotl.train import train

        config = {**yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")), **TINY, **options}
        Path("run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        cfg = load_cfg("run.yaml")
        train(cfg=cfg, dataset_meta=load_datasets(cfg=cfg, cli_args=TrainerCliArgs()))
        return steps

    return run


TINY = {"max_steps": 2, "micro_batch_size": 2, "sequence_len": 256, "bf16": False, "dataset_num_proc": 1, "lora_r": 4}


def write_chats(path):
    chats = [
        [
            {"role": "user", "content": f"question {number} " + "x" * number},
            {"role": "assistant", "content": f"answer {number}"},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "content": "so"},
        ]
        for number in range(8)
    ]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_checkpointing": True}, {"sample_packing": True, "micro_batch_size": 1}],
    ids=["rows", "checkpointing", "packed"],
)
def test_axolotl_trains_every_step_under_segments(axolotl_run, tmp_path, options):
    steps = axolotl_run(adapter=None, lora_target_linear=None, **options)
    assert len(steps) == 2
    for step in steps:
        assert_under_segments(step)
    model, _ = segattn.from_pretrained(tmp_path / "runs" / "axolotl")
    assert segattn.is_enabled(model)


@pytest.mark.slow
def test_axolotl_refuses_labels_on_prompts(axolotl_run):
    datasets = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))["datasets"]
    with pytest.raises(segattn.LabelLeakError, match="row 0"):
        axolotl_run(datasets=[{**datasets[0], "roles_to_train": ["user", "assistant"]}])
