"""Runs that are killed with SIGKILL at a given moment and gone on with: `killed_runs.py BASE FOLDER KIND MOMENT...`.

Every run is a process of its own, forked from this one, which has imported everything and trained nothing.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from segattn.modeling import checkpoint as model_files
from segattn.training import ModelSettings, SFTSettings, TrainSettings, checkpoints, train
from segattn.training.adapt import adapt
from segattn.training.adapt_settings import AdaptSettings
from segattn.training.trainer import SegmentSFTTrainer
from training.conftest import make_samples

SAVED = 4  # the step in whose checkpoint the process is killed


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def patch(owner, name, before=None, after=None, when=lambda *args, **options: True):
    """Call `before` or `after` around a function, if `when` says so."""
    original = getattr(owner, name)

    def patched(*args, **options):
        chosen = when(*args, **options)
        if chosen and before is not None:
            before(*args)
        result = original(*args, **options)
        if chosen and after is not None:
            after(*args)
        return result

    setattr(owner, name, patched)


def half_written(content, file):
    """Leave half of what torch.save would write."""
    torch_save(content, file)
    os.truncate(file, Path(file).stat().st_size // 2)
    kill()


torch_save = torch.save


def in_second_half_of_step(trainer, *args, **options):
    return trainer.state.global_step == SAVED and trainer.accelerator.sync_gradients


def at_save(trainer, *args, **options):
    return trainer.state.global_step == SAVED


def staged(folder, *args, **options):
    return folder.name == f"checkpoint-{SAVED}"


def half_deleted(folder, **options):
    for file in list(Path(folder).rglob("*.pt")):
        file.unlink()
    if (Path(folder) / "deleted-checkpoint-2").exists():
        kill()


MOMENTS = {
    "unbroken": lambda: None,
    "first step": lambda: patch(SegmentSFTTrainer, "training_step", kill_now),
    "within a step": lambda: patch(SegmentSFTTrainer, "training_step", kill_now, when=in_second_half_of_step),
    "evaluation": lambda: patch(SegmentSFTTrainer, "prediction_step", kill_now, when=at_save),
    "weights written": lambda: patch(SegmentSFTTrainer, "_save_optimizer_and_scheduler", kill_now, when=at_save),
    "optimizer half written": lambda: patch(
        SegmentSFTTrainer,
        "_save_optimizer_and_scheduler",
        lambda *args: setattr(torch, "save", half_written),
        when=at_save,
    ),
    "not sealed": lambda: patch(checkpoints, "seal", kill_now, when=staged),
    "sealed": lambda: patch(checkpoints, "publish", kill_now, when=staged),
    "published": lambda: patch(checkpoints, "publish", after=kill_now, when=staged),
    "rotating": lambda: patch(checkpoints.shutil, "rmtree", half_deleted),
    "last checkpoint": lambda: patch(SegmentSFTTrainer, "_finalize_training", kill_now),
    "model half saved": lambda: patch(model_files, "_move_into", half_moved),
    "model saved": lambda: patch(model_files, "_move_into", after=kill_now),
}


def kill_now(*args):
    kill()


def half_moved(source, target):
    if target.exists():
        next(source.glob("*.safetensors")).replace(target / "adapter_model.safetensors")
        kill()


def train_once(base, folder, kind, resume):
    options = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 3,
        "save_steps": 2,
        "save_total_limit": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 11,
        "resume_from_checkpoint": "auto" if resume else None,
    }
    if kind == "packed":
        options.update(packing=True, max_length=128, train_sampling_strategy="random", save_total_limit=2)
    model = ModelSettings(model_name_or_path=base, lora_r=4, lora_dropout=0.1, use_peft=kind != "full")
    settings = TrainSettings(opening_steps=5)
    samples = make_samples(10)
    result = train(settings, SFTSettings(str(folder), **options), model, samples=samples[:7], held_out=samples[7:])
    return {"curve": result.to_dict()["curve"], "train_losses": result.train_losses, "steps": result.steps}


def adapt_once(base, folder, kind, resume):
    settings = AdaptSettings(
        model=base,
        output_dir=str(folder),
        steps=6,
        opening_steps=5,
        save_steps=2,
        eval_steps=2,
        batch_size=2,
        held_out=3,
        max_new_tokens=6,
        lora_r=4,
        dtype="float32",
        shuffle=0,
    )
    result = adapt(settings, resume=resume and (folder / "adapt_settings.json").is_file())
    return {"curve": result.curve, "train_losses": result.train_losses, "steps": result.steps}


def run(base, folder, kind, moment, resume):
    """Train in a process of its own, until it is killed or done; returns how it ended."""
    process = os.fork()
    if process == 0:
        try:
            log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if not resume and moment in MOMENTS:
                MOMENTS[moment]()
            once = adapt_once if kind == "adapt" else train_once
            folder.with_suffix(".json").write_text(json.dumps(once(base, folder, kind, resume)))
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    if not resume and moment.startswith("after "):  # milliseconds after the first checkpoint
        while not list(folder.glob("checkpoint-*")) and os.waitpid(process, os.WNOHANG)[0] == 0:
            time.sleep(0.01)
        time.sleep(int(moment.split()[1]) / 1000)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main():
    """Print how each run ended, and how the one that went on with it did, as JSON."""
    base, root, kind, *moments = sys.argv[1:]
    ends = {}
    for moment in moments:
        folder = Path(root) / moment.replace(" ", "_")
        ends[moment] = [run(base, folder, kind, moment, resume=False)]
        if moment != "unbroken":
            ends[moment] += [sorted(path.name for path in folder.glob("checkpoint-*"))]
            ends[moment] += [run(base, folder, kind, moment, resume=True)]
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
