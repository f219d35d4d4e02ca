"""Two processes on gloo train as one does: the same losses at every step, the same weights, files written once."""

import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import TrlParser

import segattn
from segattn.training import ModelSettings, SFTSettings, TrainSettings, train
from segattn.training.parallelism import check_parallelism, keep_adapter_whole
from training.conftest import make_samples

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples" / "distributed"
TOLERANCE = 2e-5  # of losses near 6 and weights up to 1.5; measured: 5e-6

# accelerate's names for what its launcher is told (`accelerate launch --use_fsdp --fsdp_version 2 ...`).
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


def described(base, folder, per_device, *, lora=True, settings=None, interrupt=None, **sft):
    """A run of 14 samples and 5 held-out ones: no multiple of 4, so that the last batches have to be filled up."""
    arguments = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": per_device,
        "learning_rate": 1e-2 if lora else 1e-3,
        "adam_epsilon": 1e-3,  # or Adam makes as much of a gradient that is rounding alone as of any other
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 11,
        **sft,
    }
    model = {"model_name_or_path": base, "lora_r": 4, "lora_dropout": 0.0, "use_peft": lora, "dtype": "float32"}
    counts = {"samples": 14, "held_out": 5}
    return {"settings": settings or {}, "sft": arguments, "model": model, "interrupt": interrupt, **counts}


def in_one_process(told):
    samples = make_samples(told["samples"] + told["held_out"], learn="all")
    return train(
        TrainSettings(**told["settings"]),
        SFTSettings(**told["sft"]),
        ModelSettings(**told["model"]),
        samples=samples[: told["samples"]],
        held_out=samples[told["samples"] :],
    )


def environment(**more):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "FSDP_"))}
    return {**own, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **more}


def in_two_processes(folder, runs, **more):
    """Do the runs in two processes; return what each of them saw of each run."""
    folder.mkdir(exist_ok=True)
    (folder / "runs.json").write_text(json.dumps(runs))
    start_two(folder, "launched_training.py", folder, **more)
    return list(zip(*(json.loads((folder / f"rank-{rank}.json").read_text()) for rank in "01"), strict=True))


def start_two(folder, script, *arguments, **more):
    """Run a script in two processes, as torchrun would start them, to their end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in "01":
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with (folder / f"log-{rank}").open("w") as log:
            options = {"stdout": log, "stderr": subprocess.STDOUT, "env": environment(**place, **where, **more)}
            command = [sys.executable, str(HERE / script), *map(str, arguments)]
            started.append(subprocess.Popen(command, **options))
    try:
        codes = [process.wait(timeout=540) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0, 0], (folder / "log-0").read_text()[-3000:] + (folder / "log-1").read_text()[-3000:]


def expect_equal(seen, result, folder, tolerance=TOLERANCE, *, sharded=False):
    """What two processes saw of a run is what one process saw, and the folders hold the same weights."""
    for process in seen:
        assert process.get("error") is None
        assert (process["enabled"], process["sharded"]) == (True, sharded)
        assert [loss for _, loss in process["train_losses"]] == pytest.approx(
            [loss for _, loss in result.train_losses], abs=tolerance
        )
        assert [(point["step"], point["opening_loss"] is None) for point in process["curve"]] == [
            (point.step, point.opening_loss is None) for point in result.curve
        ]
        for name in ("loss", "opening_loss"):
            got = [point[name] for point in process["curve"] if point[name] is not None]
            want = [getattr(point, name) for point in result.curve if getattr(point, name) is not None]
            assert got == pytest.approx(want, abs=tolerance)
    expect_weights(folder, Path(result.output_dir), tolerance)
    assert json.loads((folder / "training_result.json").read_text())["result"]["steps"] == len(result.train_losses)
    assert not [file for file in folder.rglob("*") if "partial" in file.name]


def expect_weights(folder, other, tolerance=TOLERANCE):
    [file] = folder.glob("*.safetensors")
    got, want = load_file(file), load_file(other / file.name)
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, atol=tolerance, rtol=0)


def rows_of(processes):
    """The rows that the processes were given, without padding."""
    padding = 257
    rows = [row for process in processes for _, batch in process["batches"] for row in batch]
    return [tuple(row[: len(row) - next(n for n, token in enumerate(row[::-1]) if token != padding)]) for row in rows]


def test_two_processes_train_as_one_and_stop_together(tiny, tmp_path):
    opening = {"opening_steps": 3}
    two = tmp_path / "two"
    runs = [
        described(tiny, two / "whole", 2, settings=opening),
        # Only the second process gets Ctrl-C, in its second step.
        described(tiny, two / "cut", 2, settings=opening, interrupt=[1, 1]),
        described(tiny, two / "cut", 2, settings=opening, resume_from_checkpoint="last"),
    ]
    whole, cut, resumed = in_two_processes(two, runs)
    result = in_one_process(described(tiny, tmp_path / "one", 4, settings=opening))
    expect_equal(whole, result, two / "whole")
    assert [(process["interrupted"], process["steps"]) for process in cut] == [(True, 2)] * 2
    assert [(process["interrupted"], process["steps"]) for process in resumed] == [(False, 4)] * 2
    expect_weights(two / "cut", tmp_path / "one")
    # An epoch of 14 rows, each in one of the processes; the last step is filled up with two copies of the shortest.
    rows = rows_of(whole)
    assert (len(rows), len(set(rows))) == (16, 14)
    assert rows.count(min(rows, key=len)) == 3
    loaded, _ = segattn.from_pretrained(two / "whole")
    assert segattn.is_enabled(loaded)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "fsdp2-sharded"])
def test_all_ways_of_training_are_those_of_one_process(tiny, tmp_path, kind):
    two = tmp_path / "two"
    told = {
        "ddp": {},
        "fsdp2": {**FSDP2, "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"},
        "fsdp2-sharded": {**FSDP2, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"},
    }[kind]
    recomputed = {"gradient_checkpointing": True} if kind == "fsdp2-sharded" else {}
    packed = {"packing": True, "max_length": 96}
    ways = {
        "lora": {},
        "full": {"lora": False},
        "packed": {**packed, "settings": {"opening_steps": 3}},
        "free": {"padding_free": True, "train_sampling_strategy": "random"},
    }
    runs = [
        # Two processes, two batches before each step, of one row: four rows a step as in one process.
        described(tiny, two / name, 1, gradient_accumulation_steps=2, **recomputed, **way)
        for name, way in ways.items()
    ]
    for name in ("cut-lora", "cut-full"):
        lora = name == "cut-lora"
        runs.append(described(tiny, two / name, 2, interrupt=[1, 1], lora=lora))
        runs.append(described(tiny, two / name, 2, resume_from_checkpoint="last", lora=lora))
    seen = in_two_processes(two, runs, **told)
    results = {}
    for (name, way), run in zip(ways.items(), seen, strict=False):
        size = {"per_device": 1, "gradient_accumulation_steps": 4} if name == "packed" else {"per_device": 4}
        results[name] = in_one_process(described(tiny, tmp_path / name, **size, **way))
        expect_equal(run, results[name], two / name, sharded=kind != "ddp")
    for name, cut, resumed in zip(("lora", "full"), seen[-4::2], seen[-3::2], strict=True):
        assert [(process["interrupted"], process["steps"]) for process in cut] == [(True, 2)] * 2
        expect_equal(resumed, results[name], two / f"cut-{name}", sharded=kind != "ddp")
    # What is saved loads by itself, under segments, as a model of the stock class.
    loaded, _ = segattn.from_pretrained(two / "full")
    assert segattn.is_enabled(loaded)
    assert type(AutoModelForCausalLM.from_pretrained(two / "full")).__name__ == "LlamaForCausalLM"
    assert json.loads((two / "packed" / "segment_attention.json").read_text())["segmenter"]["policy"] == "turns"


def test_an_adapter_that_would_not_be_saved_is_refused():
    from accelerate import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, activation_checkpointing=True, state_dict_type="SHARDED_STATE_DICT"
    )
    with pytest.raises(segattn.UnsupportedModelError, match="PEFT would save an empty adapter"):
        keep_adapter_whole(plugin)
    plugin.activation_checkpointing = False
    keep_adapter_whole(plugin)
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    assert plugin.optim_state_dict_config.rank0_only  # else a checkpoint could not be gone on with


def need_deepspeed():
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed (pip install deepspeed)")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_deepspeed_trains_as_one_process(tiny, tmp_path, stage):
    need_deepspeed()
    told = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage,
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true",
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto",
        "DS_ACCELERATOR": "cpu",
    }
    two, cpu = tmp_path / "two", {"use_cpu": False}
    ways = {"lora": {}, "full": {"lora": False}}
    runs = []
    for name, way in ways.items():
        runs.append(described(tiny, two / name, 2, **cpu, **way))
        runs.append(described(tiny, two / f"cut-{name}", 2, interrupt=[1, 1], **cpu, **way))
        runs.append(described(tiny, two / f"cut-{name}", 2, resume_from_checkpoint="last", **cpu, **way))
    seen = in_two_processes(two, runs, **told)
    for place, (name, way) in enumerate(ways.items()):
        whole, cut, resumed = seen[3 * place : 3 * place + 3]
        result = in_one_process(described(tiny, tmp_path / name, 4, **way))
        expect_equal(whole, result, two / name)
        assert {process["wrapper"] for process in whole} == {"DeepSpeedEngine"}
        assert [(process["interrupted"], process["steps"]) for process in cut] == [(True, 2)] * 2
        expect_equal(resumed, result, two / f"cut-{name}")
        loaded, _ = segattn.from_pretrained(two / name)
        assert segattn.is_enabled(loaded)


@pytest.mark.slow
def test_a_model_that_is_split_by_tensors_follows_segments(tiny, tmp_path):
    start_two(tmp_path, "split_forward.py", tiny, tmp_path)
    for rank in "01":
        seen = json.loads((tmp_path / f"split-{rank}.json").read_text())
        assert (seen["tp_size"], seen["heads_here"]) == (2, 16)  # of 32 rows of the projection
        assert max(seen["dense"], seen["sliced"]) < 1e-4
        assert seen["causal differs by"] > 1


@pytest.mark.parametrize("kind", ["cp", "sp", "tp"])
def test_what_is_not_data_parallelism_is_refused_by_name(tiny, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{kind.upper()}_SIZE", "2")
    with pytest.raises(segattn.UnsupportedModelError, match=f"{kind}_size is 2"):
        in_one_process(described(tiny, tmp_path, 1))


def test_parallelism_in_the_training_arguments_is_refused(tmp_path):
    from accelerate.parallelism_config import ParallelismConfig

    for kind in ("cp", "sp", "tp"):
        arguments = SFTSettings(str(tmp_path), use_cpu=True, bf16=False)
        arguments.parallelism_config = ParallelismConfig(**{f"{kind}_size": 2})
        with pytest.raises(segattn.UnsupportedModelError, match=f"{kind}_size is 2"):
            check_parallelism(arguments)
    check_parallelism(SFTSettings(str(tmp_path), use_cpu=True, bf16=False))


def test_a_model_that_is_split_by_tensors_is_not_trained(tmp_path):
    class Split:
        tp_size = 2

    with pytest.raises(segattn.UnsupportedModelError, match="tp_size is 2"):
        check_parallelism(SFTSettings(str(tmp_path), use_cpu=True, bf16=False), Split())


def test_several_gpus_in_one_process_are_told_of_and_not_used(tmp_path, caplog):
    arguments = SFTSettings(str(tmp_path), use_cpu=True, bf16=False)
    assert arguments.n_gpu <= 1
    arguments._n_gpu = 4
    check_parallelism(arguments)
    assert arguments.n_gpu == 1
    assert "4 GPUs are there and one is used" in caplog.text


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.name)
def test_accelerate_knows_every_key_of_the_examples(file):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(file))  # raises at an unknown key
    flags = {action.dest for action in launch_command_parser()._actions}
    nested = {**config.fsdp_config, **config.deepspeed_config}
    assert nested.keys() - flags == set()
    assert config.num_processes == int(file.name.partition("-")[0])
    assert config.num_processes % config.num_machines == 0


def commands_of(page):
    """The commands of a page that launch `segattn train`, as lists of words."""
    text = page.read_text().replace("\\\n", " ")
    lines = [
        line.strip() for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL) for line in block.split("\n")
    ]
    return [shlex.split(line) for line in lines if line.startswith("accelerate launch") and not line.endswith("...")]


@pytest.mark.parametrize("page", [EXAMPLES / "README.md", EXAMPLES.parents[1] / "docs" / "distributed.md"], ids=str)
def test_the_commands_of_the_pages_have_flags_that_exist(page):
    from accelerate.commands.launch import launch_command_parser

    commands = commands_of(page)
    assert commands
    for words in commands:
        launched = launch_command_parser().parse_args(words[2:])
        assert (EXAMPLES.parents[1] / launched.config_file).is_file()
        assert (launched.module, launched.training_script) == (True, "segattn")
        command, *flags = launched.training_script_args
        assert command == "train"
        parser = TrlParser((TrainSettings, SFTSettings, ModelSettings), allow_abbrev=False)
        settings, sft, model = parser.parse_args_and_config(flags)
        assert settings.data
        assert model.model_name_or_path
        if sft.gradient_accumulation_steps > 1:
            rows = sft.per_device_train_batch_size * sft.gradient_accumulation_steps
            assert rows * int(Path(launched.config_file).name.partition("-")[0]) == 64


@pytest.mark.slow
@pytest.mark.parametrize("file", ["1-gpu.yaml", "8-gpus-ddp.yaml", "8-gpus-fsdp2.yaml", "64-gpus-fsdp2.yaml"])
def test_the_examples_launch_the_command_line(tiny, tmp_path, file):
    """With two processes on CPUs in place of the file's numbers."""
    command = launched(tiny, tmp_path, file, "1" if file == "1-gpu.yaml" else "2", "--max_steps 2")
    output = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stderr[-3000:]
    assert output.stdout.count("2 steps on 6 samples") == 1
    segattn.from_pretrained(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["8-gpus-fsdp2.yaml", "8-gpus-zero3.yaml", "64-gpus-fsdp2.yaml"])
def test_the_examples_that_shard_train_as_one_process(tiny, tmp_path, file):
    """The script in the place of the command line, since it tells accelerate that CPUs are GPUs."""
    if "zero" in file:
        need_deepspeed()
    two, cpu = tmp_path / "two", {"use_cpu": "zero" not in file}
    two.mkdir()
    (two / "runs.json").write_text(json.dumps([described(tiny, two / "full", 2, lora=False, **cpu)]))
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *numbers(file, "2"),
        str(HERE / "launched_training.py"),
    ]
    output = subprocess.run(
        [*command, str(two)], env=environment(DS_ACCELERATOR="cpu"), capture_output=True, text=True, check=False
    )
    assert output.returncode == 0, output.stderr[-3000:]
    seen = [json.loads((two / f"rank-{rank}.json").read_text())[0] for rank in "01"]
    result = in_one_process(described(tiny, tmp_path / "one", 4, lora=False))
    expect_equal(seen, result, two / "full", sharded="fsdp" in file)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_stops_a_launched_run_with_a_checkpoint(tiny, tmp_path):
    """The launcher and both processes get it at once, and the launcher passes it on to processes that had it."""
    command = launched(tiny, tmp_path, "8-gpus-ddp.yaml", "2", "--max_steps 5000 --logging_steps 1 --save_strategy no")
    with (tmp_path / "log").open("w") as log:
        options = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True, "env": environment()}
        process = subprocess.Popen(command, **options)
    try:
        while "step 3 of 5000" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=120) != 0  # so that what comes after the run in a script does not begin
    finally:
        process.kill()
    told = (tmp_path / "log").read_text()
    assert "stopping after this step" in told
    [checkpoint] = (tmp_path / "out").glob("checkpoint-*")
    assert f"stopped early: {checkpoint.name.partition('-')[2]} steps" in told
    segattn.from_pretrained(tmp_path / "out")


def launched(tiny, folder, file, processes, more):
    """The command that trains on six rows with an example's file, other numbers and further flags."""
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(6)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"-m segattn train --model {tiny} --data {folder / 'data.jsonl'} --output_dir {folder / 'out'}"
    flags = f"--lora_r 2 --bf16 false --use_cpu true --report_to none {more}"
    launch = [sys.executable, "-m", "accelerate.commands.launch", *numbers(file, processes)]
    return [*launch, *f"{command} {flags}".split()]


def numbers(file, processes):
    """The launcher's flags: an example's file, on one machine, in float32."""
    given = f"--config_file {EXAMPLES / file} --num_processes {processes} --num_machines 1 --machine_rank 0"
    return f"{given} --mixed_precision no --main_process_port 0".split()
